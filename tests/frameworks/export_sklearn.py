"""Export small scikit-learn models by skl2onnx: `python export_sklearn.py FOLDER`."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from keep import Keeper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import GradientBoostingRegressor, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler


def main(folder: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 5)).astype(np.float32)
    label = (x[:, 0] + x[:, 1] ** 2 > 0.5).astype(np.int64)
    keeper = Keeper(folder / "sklearn")
    inputs = [("x", FloatTensorType([None, 5]))]

    def keep(name: str, model: Any, answers: list[Any], **options: Any) -> None:
        proto = to_onnx(model, initial_types=inputs, target_opset=17, **options)
        keeper.keep(name, lambda path: path.write_bytes(proto.SerializeToString()), [x], answers)

    for name, model in {
        "logistic": make_pipeline(StandardScaler(), LogisticRegression()),
        "forest": RandomForestClassifier(8, max_depth=4, random_state=0),
        "perceptron": make_pipeline(StandardScaler(), MLPClassifier((16, 8), random_state=0)),
    }.items():
        model.fit(x, label)
        answers = [model.predict(x), model.predict_proba(x).astype(np.float32)]
        keep(name, model, answers, options={"zipmap": False})
    boosted = GradientBoostingRegressor(n_estimators=12, random_state=0).fit(x, x[:, 2] * 3)
    keep("boosted", boosted, [boosted.predict(x).astype(np.float32).reshape(-1, 1)])

    colours = rng.choice(["red", "green", "blue"], (60, 1))
    table = np.concatenate([x.astype(object), colours], axis=1)
    mixed = make_pipeline(
        ColumnTransformer([("n", StandardScaler(), [0, 1]), ("c", OneHotEncoder(), [5])]),
        LogisticRegression(),
    )
    mixed.fit(table, label)
    proto = to_onnx(
        make_pipeline(OneHotEncoder(), LogisticRegression()).fit(colours, label),
        initial_types=[("colour", StringTensorType([None, 1]))],
        target_opset=17,
        options={"zipmap": False},
    )
    words = make_pipeline(OneHotEncoder(), LogisticRegression()).fit(colours, label)
    keeper.keep(
        "words",
        lambda path: path.write_bytes(proto.SerializeToString()),
        [colours],
        [words.predict(colours), words.predict_proba(colours).astype(np.float32)],
    )


main(Path(sys.argv[1]))
