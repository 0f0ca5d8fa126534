"""Manifests load only whole and unchanged, and are written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmsflow import manifest, plugin
from dmsflow.environment import describe_environment
from dmsflow.errors import DmsflowError
from dmsflow.files import describe_artifact, write_atomically, writing
from dmsflow.manifest import Flow, Manifest, load_manifest, save_manifest
from dmsflow.network.architectures import vgg11
from dmsflow.settings import BenchSettings, Data, ExportSettings, SearchSettings, TrainSettings, anchored

NETWORK = vgg11.build(1, 32, 10)


def make(folder: Path, **fields: object) -> Path:
    """A search manifest with one artifact, and its path."""
    (folder / "log.jsonl").write_text('{"round": 1}\n')
    values: dict[str, object] = {
        "stage": "search",
        "command": ("dmsflow", "search"),
        "settings": {"seed": 0},
        "network": NETWORK,
        "widths": dict(NETWORK.widths),
        "data": Data(),
        "artifacts": {"log": describe_artifact(folder / "log.jsonl", folder)},
        "metrics": {"memory_mib": 0.0778},
        "environment": {},
        **fields,
    }
    return save_manifest(folder / "search.json", Manifest(**values))  # type: ignore[arg-type]


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = make(tmp_path)
    loaded = load_manifest(path, "search")
    assert loaded.network == NETWORK
    assert loaded.widths == NETWORK.widths
    assert loaded.metrics == {"memory_mib": 0.0778}
    assert loaded.artifacts["log"].sha256 == hashlib.sha256((tmp_path / "log.jsonl").read_bytes()).hexdigest()


@given(st.integers(0, 2000))
def test_a_truncated_manifest_is_refused(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    path = make(tmp_path_factory.mktemp("m"))
    path.write_bytes(path.read_bytes().rstrip()[: -1 - length])
    with pytest.raises(DmsflowError, match="not a dmsflow manifest"):
        load_manifest(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b'{"schema": 1}', b'{"stage": "lunch"}'])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "search.json"
    path.write_bytes(content)
    with pytest.raises(DmsflowError, match="not a dmsflow manifest .*; run the stage that writes it again"):
        load_manifest(path)


def edit(path: Path, **fields: object) -> None:
    path.write_bytes(msgspec.json.encode({**msgspec.json.decode(path.read_bytes()), **fields}))


def test_an_unknown_field_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path)
    edit(path, mood="good")
    with pytest.raises(DmsflowError, match="unknown field `mood`"):
        load_manifest(path)


def test_another_schema_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path)
    edit(path, schema=2)
    with pytest.raises(DmsflowError, match="has schema 2; this version reads schema 1"):
        load_manifest(path)


@pytest.mark.parametrize("widths", [{}, {**NETWORK.widths, "extra": 3}, {**NETWORK.widths, "conv0": 0}])
def test_widths_that_do_not_fit_are_refused(tmp_path: Path, widths: dict[str, int]) -> None:
    path = make(tmp_path)
    edit(path, widths=widths)
    with pytest.raises(DmsflowError, match="width"):
        load_manifest(path)


def test_widths_out_of_reason_are_refused(tmp_path: Path) -> None:
    path = make(tmp_path)
    edit(path, widths={**NETWORK.widths, "conv0": 10**9})
    with pytest.raises(DmsflowError, match="layer 'conv0': puts out 1000000000 channels"):
        load_manifest(path)


def test_the_wrong_stage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DmsflowError, match="is a manifest of search; give a manifest of train or export"):
        load_manifest(make(tmp_path), "train", "export")


def test_a_missing_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DmsflowError, match="No such file or directory; give the path of a manifest"):
        load_manifest(tmp_path / "search.json")


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"metrics": {"memory_mib": "small"}}, "metrics.memory_mib: Expected `float | null`, got `str`; run the stage"),
        ({"metrics": {"comparison": [{"loss": 1}, 3]}}, r"metrics.comparison: Expected `object`, got `int`"),
        ({"metrics": {"comparison": [{"budgets_used": "x"}]}}, r"metrics.comparison.budgets_used: Expected `object"),
        (
            {"metrics": {"comparison": [{"loss_difference": []}]}},
            r"metrics.comparison.loss_difference: Expected `float",
        ),
        ({"metrics": {"comparison": [{"memory_mib": []}]}}, r"metrics.comparison.memory_mib: Expected `float | null`"),
        (
            {"metrics": {"comparison": [{"widths": {"a": "6"}}]}},
            r"metrics.comparison.widths: Expected `int`, got `str`",
        ),
        ({"metrics": {"learned": {"most": "x"}}}, "metrics.learned.most: Expected `object | null`, got `str`"),
        ({"environment": {"runtimes": ["LCE"]}}, "environment.runtimes: Expected `object`, got `array`"),
        ({"environment": {"runtimes": None}}, "environment.runtimes: Expected `object`, got `null`"),
        ({"metrics": {"latency_ms_median": None}}, "metrics.latency_ms_median: Expected `float`, got `null`"),
        ({"environment": {"machine": {"processor": 3}}}, "environment.machine.processor: Expected `str | null`"),
        ({"metrics": {"file_bytes": None}}, "metrics.file_bytes: Expected `float`, got `null`"),
        ({"metrics": {"latency_ratio_to_float32": "x"}}, "metrics.latency_ratio_to_float32: Expected `float`"),
        ({"metrics": {"float32_latency_ms_median": []}}, "metrics.float32_latency_ms_median: Expected `float | null`"),
        ({"settings": {"seed": "many"}}, r"search.json: has wrong settings \(Expected `int`, got `str`"),
        ({"artifacts": []}, r"is not a dmsflow manifest \(Expected `object`, got `array`"),
    ],
    ids=str,
)
def test_records_of_other_types_are_refused_by_name(tmp_path: Path, fields: dict[str, object], line: str) -> None:
    path = make(tmp_path)
    edit(path, **fields)
    with pytest.raises(DmsflowError, match=line.replace("|", r"\|")):
        load_manifest(path)


def test_what_a_record_lacks_is_named(tmp_path: Path) -> None:
    loaded = load_manifest(make(tmp_path, metrics={"comparison": [{"name": "equal"}]}))
    for record, name in ((loaded.metrics, "macs_m"), (loaded.settings, "rounds"), (loaded.environment, "date")):
        with pytest.raises(
            DmsflowError, match=rf"search.json: \w+.{name}: is missing; run the stage that writes the fi"
        ):
            record[name]
        assert record.get(name) is None
    with pytest.raises(DmsflowError, match=r"search.json: metrics.comparison.loss: is missing"):
        loaded.metrics["comparison"][0]["loss"]
    with pytest.raises(DmsflowError, match=r"search.json: artifacts.weights: is missing"):
        loaded.artifacts["weights"]


def test_json_that_is_nested_too_deep_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "search.json"
    path.write_text(
        '{"stage": "search", "command": [], "environment": {}, "metrics": {"a":' + "[" * 10**5 + "]" * 10**5 + "}}"
    )
    with pytest.raises(DmsflowError, match="is not a dmsflow manifest .*recursion.*"):
        load_manifest(path)


def test_records_that_are_nested_too_deep_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some decoders read more levels than Python's functions can go through."""
    path = make(tmp_path, metrics={"a": [[1]]})

    def record(where: str, value: Any) -> Any:
        return [record(where, value)]

    monkeypatch.setattr(manifest, "_record", record)
    with pytest.raises(DmsflowError, match="is nested too deep; run the stage"):
        load_manifest(path)


@pytest.mark.parametrize("kind", ["absolute", "above", "link", "other run"])
def test_a_file_outside_of_the_run_is_refused(tmp_path: Path, kind: str) -> None:
    folder, secret = tmp_path / "run", tmp_path / "secret"
    folder.mkdir()
    secret.write_text("secret")
    (folder / "link").symlink_to(secret)
    path = {"absolute": str(secret), "above": "../secret", "link": "link", "other run": "../run2/log.jsonl"}[kind]
    (tmp_path / "run2").mkdir()
    make(tmp_path / "run2")
    named = msgspec.structs.replace(describe_artifact(folder / path, folder), path=path)
    with pytest.raises(DmsflowError, match=f"search.json: names {path}, which is outside of the run; move it into"):
        load_manifest(make(folder, artifacts={"log": named}))


def test_a_file_may_lie_beside_the_parent_but_only_a_manifest_is_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    parent, own = make(tmp_path / "a"), tmp_path / "b"
    log = describe_artifact(tmp_path / "a" / "log.jsonl", own)
    path = make(own, parent=describe_artifact(parent, own), artifacts={"log": log})
    assert load_manifest(path).artifacts["log"].path == "../a/log.jsonl"
    path = make(own, parent=describe_artifact(tmp_path / "a" / "log.jsonl", own), artifacts={"log": log})
    with pytest.raises(DmsflowError, match=r"a/log.jsonl: is not a dmsflow manifest"):
        load_manifest(path)


@pytest.mark.parametrize("kind", ["data", "data with an argument", "target"])
def test_code_that_a_manifest_names_needs_the_users_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Once run, or trusted, it may run again, as long as it is the same; to read the manifest needs no word."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    code, target = tmp_path / "theirs.py", tmp_path / "theirs.toml"
    code.write_text("def load(argument, data, download): ...\n")
    target.write_text(f"runner = '{code}'\n")
    name = f"{code}:3" if "argument" in kind else str(code)
    fields = {"settings": {"target": str(target)}} if kind == "target" else {"data": Data(name=name)}
    path = make(tmp_path, **fields)
    load_manifest(path)
    for _ in range(2):
        with pytest.raises(
            DmsflowError, match=r"names .*theirs.py, and you have not run that code before; read it; if"
        ):
            load_manifest(path, "search")
        with plugin.trusting():
            load_manifest(path, "search")
            plugin.load_plugin("datasets", str(code))
        load_manifest(path, "search")
        code.write_text("def load(argument, data, download): print(1)\n")
    monkeypatch.setenv("DMSFLOW_TRUST", "1")
    load_manifest(path, "search")


def test_a_changed_artifact_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path)
    (tmp_path / "log.jsonl").write_text('{"round": 2}\n')
    with pytest.raises(DmsflowError, match=r"log\.jsonl: changed after search\.json was written"):
        load_manifest(path)


def test_a_missing_artifact_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path)
    (tmp_path / "log.jsonl").unlink()
    with pytest.raises(DmsflowError, match=r"log\.jsonl: is missing, but search\.json names it"):
        load_manifest(path)


def test_a_changed_parent_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path)
    child = load_manifest(path)
    child = msgspec.structs.replace(child, stage="train", parent=describe_artifact(path, tmp_path))
    save_manifest(tmp_path / "train.json", child)
    assert load_manifest(tmp_path / "train.json").parent
    edit(path, command=["dmsflow", "search", "--seed", "1"])
    with pytest.raises(DmsflowError, match=r"search\.json: changed after train\.json was written"):
        load_manifest(tmp_path / "train.json")


def test_a_folder_can_be_moved(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    make(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert load_manifest(tmp_path / "b" / "search.json").stage == "search"


def test_a_finished_stage_is_left_alone_or_done_again_as_the_user_says(tmp_path: Path) -> None:
    path, settings = tmp_path / "search.json", SearchSettings()
    assert not manifest.is_finished(path, settings, Flow(()))
    make(tmp_path)
    save_manifest(path, msgspec.structs.replace(load_manifest(path), settings=msgspec.to_builtins(settings)))
    assert manifest.is_finished(path, settings, Flow((), resume=True))
    assert not manifest.is_finished(path, settings, Flow((), force=True))
    with pytest.raises(DmsflowError, match="already exists; use --force to overwrite it, or --out for another folder"):
        manifest.is_finished(path, settings, Flow(()))
    with pytest.raises(
        DmsflowError, match=r"search\.json: was made with seed 0, not 1; use --resume with seed 0, or --force"
    ):
        manifest.is_finished(path, SearchSettings(seed=1), Flow((), resume=True))


def test_a_stage_that_is_resumed_from_another_source_is_refused_and_one_of_a_changed_source_is_done_again(
    tmp_path: Path,
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        make(folder)
    edit(there / "search.json", command=["dmsflow", "search", "--seed", "1"])
    settings, resume = ExportSettings(target="onnx"), Flow((), resume=True)
    parent = describe_artifact(here / "search.json", here)
    done = msgspec.structs.replace(
        load_manifest(here / "search.json"), stage="export", parent=parent, settings=msgspec.to_builtins(settings)
    )
    path = save_manifest(here / "export.json", done)
    assert manifest.is_finished(path, settings, resume, source=here / "search.json")
    with pytest.raises(
        DmsflowError, match="export.json: was made from .*here/search.json, not .*there/search.json; use"
    ):
        manifest.is_finished(path, settings, resume, source=there / "search.json")
    edit(here / "search.json", command=["dmsflow", "search", "--seed", "1"])
    assert not manifest.is_finished(path, settings, resume, source=here / "search.json")
    train = save_manifest(here / "train.json", msgspec.structs.replace(done, stage="train", settings={}))
    with pytest.raises(DmsflowError, match="search.json: changed after train.json was written"):
        manifest.is_finished(train, TrainSettings(), resume, source=here / "search.json")


@pytest.mark.parametrize(("method", "before"), [("equal", "flat"), ("interpolated", "between")])
def test_a_stage_of_an_earlier_version_is_finished_under_its_present_names(
    tmp_path: Path, method: Literal["equal", "interpolated"], before: str
) -> None:
    recorded = msgspec.to_builtins(SearchSettings(method=method))
    del recorded["amp"], recorded["width_warmup"], recorded["start_ratio"]  # and one that it did not have
    recorded |= {"method": before, "mixed": "auto", "head_start": 0.25, "hold": "projection"}
    path = make(tmp_path, settings=recorded)
    resumed = Flow((), resume=True)
    assert manifest.is_finished(path, SearchSettings(method=method, threads=2, start_ratio=2.0), resumed)
    with pytest.raises(DmsflowError, match="was made with amp auto, not off"):
        manifest.is_finished(path, SearchSettings(method=method, amp="off"), resumed)


def test_a_search_of_before_there_was_a_choice_had_a_float_stem(tmp_path: Path) -> None:
    recorded = msgspec.to_builtins(SearchSettings())
    del recorded["stem"]
    path, resumed = make(tmp_path, settings=recorded), Flow((), resume=True)
    assert manifest.is_finished(path, SearchSettings(stem="float"), resumed)
    with pytest.raises(DmsflowError, match="was made with stem float, not int8"):
        manifest.is_finished(path, SearchSettings(), resumed)


def test_a_search_of_other_images_is_not_finished(tmp_path: Path) -> None:
    path, resumed = make(tmp_path, data=anchored(Data())), Flow((), resume=True)
    assert manifest.is_finished(path, SearchSettings(), resumed, Data())
    with pytest.raises(DmsflowError, match="was made from digits with other data options; use --resume with the same"):
        manifest.is_finished(path, SearchSettings(), resumed, Data(train_images=60))


@pytest.mark.parametrize("field", ["network", "data"])
def test_a_search_without_a_network_or_data_is_refused_even_to_resume(tmp_path: Path, field: str) -> None:
    path = make(tmp_path)
    content = msgspec.json.decode(path.read_bytes())
    del content[field]
    path.write_bytes(msgspec.json.encode(content))
    with pytest.raises(DmsflowError, match="has no network or no data; run the stage that writes it again"):
        manifest.is_finished(path, SearchSettings(), Flow((), resume=True), Data())


def test_the_bench_of_a_bare_file_is_finished(tmp_path: Path) -> None:
    path, settings = tmp_path / "bench.json", BenchSettings(runs=3)
    bare = Manifest(stage="bench", command=(), settings=msgspec.to_builtins(settings), metrics={}, environment={})
    path.write_bytes(msgspec.json.encode({k: v for k, v in msgspec.to_builtins(bare).items() if v is not None}))
    assert manifest.is_finished(path, settings, Flow((), resume=True))
    with pytest.raises(DmsflowError, match="was made with runs 3, not 4"):
        manifest.is_finished(path, BenchSettings(runs=4), Flow((), resume=True))
    with pytest.raises(DmsflowError, match="is the bench of a file without a manifest"):
        load_manifest(path)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DmsflowError, match="cannot be written .No space left on device.; free some space"):
        write_atomically(tmp_path / "search.json", b"{}")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), writing(path) as partial:
        partial.write_text("ne")
        raise KeyboardInterrupt
    assert [file.name for file in tmp_path.iterdir()] == ["weights"]
    assert path.read_text() == "old"


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(DmsflowError, match="cannot be written .*; free some space or choose another folder"):
        write_atomically(tmp_path / "runs" / "search.json", b"{}")


def test_the_environment_tells_versions_and_date() -> None:
    seen = describe_environment(threads=1)
    assert seen["threads"] == 1
    assert {"dmsflow", "python", "numpy"} <= set(seen["versions"])
    assert seen["date"].endswith("+00:00")
