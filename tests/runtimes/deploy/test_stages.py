from hypothesis import given
from hypothesis import strategies as st
from offload_runtimes.deploy.stages import DEPLOY, ROLLBACK, ReleaseFile, Stage, following, sends


@given(
    st.sampled_from([DEPLOY, ROLLBACK]),
    st.sets(st.sampled_from([s for s in Stage if not s.is_last])),
)
def test_whatever_fails_something_whole_stays_current(
    order: tuple[Stage, ...], failing: set[Stage]
) -> None:
    stage, swapped, restored, committed = order[0], False, False, False
    for _ in range(20):
        if stage.is_last:
            break
        failed = stage in failing
        swapped |= stage is Stage.SWAP
        committed |= stage is Stage.COMMIT and not failed
        restored |= stage is Stage.BACK and not failed
        stage = following(stage, failed=failed, order=order)
    assert stage.is_last
    assert (stage is Stage.COMMITTED) == committed == (not failing & set(order))
    assert (stage is Stage.REFUSED) == (not swapped)
    assert (stage is Stage.UNDONE) == restored


def test_the_proof_is_run_before_anything_in_use_changes() -> None:
    for order in (DEPLOY, ROLLBACK):
        assert order.index(Stage.TRIAL) < order.index(Stage.SWAP) < order.index(Stage.COMMIT)


files = st.lists(
    st.builds(
        ReleaseFile,
        st.sampled_from(["manifest.json", *"abcdef"]),
        st.just("0" * 64),
        st.integers(0, 9),
    ),
    unique_by=lambda file: file.name,
)


@given(files, st.data())
def test_only_what_is_missing_travels_and_only_its_rest(
    held: list[ReleaseFile], data: st.DataObject
) -> None:
    missing = {
        file.name: data.draw(st.integers(0, file.size_bytes))
        for file in held
        if data.draw(st.booleans())
    }
    planned = sends(held, missing)
    assert {send.file.name: send.offset_bytes for send in planned} == missing
    assert all(send.offset_bytes + send.size_bytes == send.file.size_bytes for send in planned)
    if "manifest.json" in missing:
        assert planned[0].file.name == "manifest.json"
