"""Export classifiers and regressors of tables: `python export_tabular.py NAME FOLDER`.

scikit-learn by skl2onnx, XGBoost and LightGBM by onnxmltools, CatBoost by its own exporter, with
labels in text and, where that is the exporter's default, probabilities as maps (ZipMap).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from export_common import main, save_inputs

RNG = np.random.default_rng(0)
X = RNG.standard_normal((400, 6)).astype(np.float32)
KIND = (X[:, 0] + X[:, 1] ** 2 > 0.5).astype(np.int64) + (X[:, 2] > 1)
LABEL = np.array(["cat", "dog", "owl"])[KIND]


def forest(folder: Path) -> None:
    """scikit-learn's random forest: text labels, probabilities as maps."""
    from skl2onnx import to_onnx
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(50, max_depth=8, random_state=0).fit(X, LABEL)
    onnx.save(to_onnx(model, X[:1], target_opset=17), folder / "model.onnx")
    save_inputs(folder, [X[:8]])


def words(folder: Path) -> None:
    """A pipeline of scikit-learn that takes numbers and text."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    colour = RNG.choice(["red", "green", "blue"], (len(X), 1))
    table = np.concatenate([X.astype(object), colour], axis=1)
    columns = ColumnTransformer(
        [("numbers", StandardScaler(), list(range(6))), ("colour", OneHotEncoder(), [6])]
    )
    model = make_pipeline(columns, LogisticRegression()).fit(table, LABEL)
    types = [("numbers", FloatTensorType([None, 6])), ("colour", StringTensorType([None, 1]))]
    onnx.save(to_onnx(model, initial_types=types, target_opset=17), folder / "model.onnx")
    save_inputs(folder, {"numbers": X[:8], "colour": colour[:8]})


def perceptron(folder: Path) -> None:
    """scikit-learn's perceptron, which becomes plain MatMul."""
    from skl2onnx import to_onnx
    from sklearn.neural_network import MLPClassifier

    model = MLPClassifier((256, 128), max_iter=20, random_state=0).fit(X, LABEL)
    proto = to_onnx(model, X[:1], target_opset=17, options={"zipmap": False})
    onnx.save(proto, folder / "model.onnx")
    save_inputs(folder, [X[:8]])


def catboost(folder: Path) -> None:
    """CatBoost with text labels: probabilities as maps."""
    from catboost import CatBoostClassifier

    model = CatBoostClassifier(iterations=60, depth=5, verbose=False, random_seed=0)
    model.set_params(allow_writing_files=False)
    model.fit(X, LABEL)
    model.save_model(str(folder / "model.onnx"), format="onnx")
    save_inputs(folder, [X[:8]])


def xgboost(folder: Path) -> None:
    """XGBoost, three classes."""
    from onnxmltools import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType
    from xgboost import XGBClassifier

    model = XGBClassifier(n_estimators=40, max_depth=5, random_state=0).fit(X, KIND)
    proto = convert_xgboost(model, initial_types=[("x", FloatTensorType([None, 6]))])
    onnx.save(proto, folder / "model.onnx")
    save_inputs(folder, [X[:8]])


def lightgbm(folder: Path) -> None:
    """LightGBM with text labels; its exporter declares shapes that are wrong."""
    from lightgbm import LGBMClassifier
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    model = LGBMClassifier(n_estimators=40, max_depth=5, random_state=0, verbose=-1).fit(X, LABEL)
    proto = convert_lightgbm(model, initial_types=[("x", FloatTensorType([None, 6]))])
    onnx.save(proto, folder / "model.onnx")
    save_inputs(folder, [X[:8]])


NETWORKS: dict[str, Callable[[Path], None]] = {
    "sklearn-forest": forest,
    "sklearn-text": words,
    "sklearn-perceptron": perceptron,
    "catboost": catboost,
    "xgboost": xgboost,
    "lightgbm": lightgbm,
}

main(NETWORKS)
