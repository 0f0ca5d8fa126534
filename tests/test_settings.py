"""Presets hold only fields that exist, and every wrong value is answered with what would be right."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from msgspec import inspect

from dmsflow import preset, settings
from dmsflow.errors import DmsflowError
from dmsflow.options import RECORDS, peel_type
from dmsflow.settings import BenchSettings, Data, ExportSettings, ProfileSettings, SearchSettings, TrainSettings

STAGES = {"search": SearchSettings, "train": TrainSettings}
PRESETS = sorted(path.stem for path in preset.PRESETS.glob("*.toml"))


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("stage", STAGES)
def test_presets_resolve(name: str, stage: str) -> None:
    values = preset.load_preset(stage, name)
    resolved = settings.resolve(STAGES[stage], **values)
    for field, value in values.items():
        assert getattr(resolved, field) == (tuple(value) if isinstance(value, list) else value)


def test_quick_is_the_defaults() -> None:
    assert preset.load_preset("search", "default") == {}
    assert preset.load_preset("train", "default") == {}


def test_paper_is_the_paper() -> None:
    search = settings.resolve(SearchSettings, **preset.load_preset("search", "paper"))
    assert (search.method, search.penalty, search.start_ratio) == ("published", 0.01, 1.5)
    assert (search.sigma_start, search.sigma_end, search.min_ratio, search.batch_size) == (1.0, 0.3, 0.3, 64)
    assert search.rounds * search.weight_epochs == 250  # type: ignore[operator]
    train = settings.resolve(TrainSettings, **preset.load_preset("train", "paper"))
    assert (train.epochs, train.learning_rate, train.milestones) == (300, 0.1, (140, 220, 260))


def test_an_unknown_preset() -> None:
    with pytest.raises(DmsflowError, match=r"^--preset slow: is unknown; use one of default.*paper"):
        preset.load_preset("search", "slow")


def test_a_broken_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.toml").write_text("[search\n")
    monkeypatch.setattr(preset, "PRESETS", tmp_path)
    with pytest.raises(DmsflowError, match=r"mine\.toml: is not TOML .*; correct the file"):
        preset.load_preset("search", "mine")


@pytest.mark.parametrize(
    ("kind", "values", "where"),
    [
        (SearchSettings, {"memory_mib": 0.0}, "setting memory_mib"),
        (SearchSettings, {"method": "hope"}, "setting method"),
        (SearchSettings, {"rounds": 0}, "setting rounds"),
        (SearchSettings, {"rounds": 1.5}, "setting rounds"),
        (TrainSettings, {"momentum": 1.0}, "setting momentum"),
        (TrainSettings, {"batch_size": 1}, "setting batch_size"),
        (SearchSettings, {"batch_size": 1}, "setting batch_size"),
        (SearchSettings, {"seed": 2**70}, "setting seed"),
        (SearchSettings, {"threads": 100_000}, "setting threads"),
        (SearchSettings, {"max_ratio": 1e9}, "setting max_ratio"),
        (SearchSettings, {"sigma_start": 1e-320}, "setting sigma_start"),
        (SearchSettings, {"sigma_end": 1e-320}, "setting sigma_end"),
        (SearchSettings, {"temperature": 1e-320}, "setting temperature"),
        (BenchSettings, {"threads": 100_000}, "setting threads"),
        (ProfileSettings, {"channels": 10**9}, "setting channels"),
        (ProfileSettings, {"networks": ()}, "setting networks"),
        (ProfileSettings, {"resolutions": ()}, "setting resolutions"),
        (ProfileSettings, {"classes": 10**9}, "setting classes"),
        (Data, {"resolution": 10**9}, "setting resolution"),
        (Data, {"workers": 10**9}, "setting workers"),
        (TrainSettings, {"epochs": "8"}, "setting epochs"),
        (ExportSettings, {"check_images": 0}, "setting check_images"),
        (BenchSettings, {"threads": 0}, "setting threads"),
    ],
)
def test_a_wrong_value_names_its_setting(kind: type[msgspec.Struct], values: dict[str, object], where: str) -> None:
    with pytest.raises(DmsflowError, match=rf"^{where}: .* is not valid; (expected|use one of) "):
        settings.resolve(kind, **values)


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize(
    "value",
    [10**30, -(10**30), 10**5000, 1e300, -1e300, float("inf"), float("nan")],
    ids=["int", "negative", "endless", "float", "below", "inf", "nan"],
)
def test_every_number_has_limits(record: str, value: float) -> None:
    for field in inspect.type_info(RECORDS[record]).fields:  # type: ignore[attr-defined]
        kind, _ = peel_type(field.type)
        many = isinstance(kind, inspect.VarTupleType)
        kind = peel_type(kind.item_type)[0] if isinstance(kind, inspect.VarTupleType) else kind
        if isinstance(kind, (inspect.IntType, inspect.FloatType)):
            with pytest.raises(DmsflowError, match=rf"^(setting {field.name}|{RECORDS[record].__name__}): .{{1,200}}$"):
                settings.resolve(RECORDS[record], **{field.name: [value] if many else value})


@pytest.mark.parametrize("value", [[], {}, None, 3])
def test_a_method_of_any_type_is_no_renamed_one(value: object) -> None:
    assert settings.with_present_names({"method": value}) == {"method": value}
    with pytest.raises(DmsflowError, match=r"^setting method: .* is not valid; use one of balanced, "):
        settings.resolve(SearchSettings, method=value)


def test_a_long_value_is_not_repeated_whole() -> None:
    with pytest.raises(DmsflowError, match=r"^setting rounds: '9{40,80}…? is not valid; expected `int`, got `str`$"):
        settings.resolve(SearchSettings, rounds="9" * 10_000)


def test_an_unknown_field() -> None:
    with pytest.raises(DmsflowError, match="setting mood: is unknown; use a name of docs/settings.md, such as m"):
        settings.resolve(SearchSettings, mood="good")


@pytest.mark.parametrize("kind", [SearchSettings, TrainSettings, ExportSettings, BenchSettings])
def test_every_field_has_help(kind: type[msgspec.Struct]) -> None:
    fields = msgspec.json.schema_components([kind])[1][kind.__name__]["properties"]
    for name, field in fields.items():
        assert field.get("description", "").endswith("."), name


def test_a_number_too_long_to_read_is_no_toml(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f"[search]\nrounds = {'9' * 5000}\n")
    with pytest.raises(DmsflowError, match=r"mine.toml: is not TOML \(.*\); correct the file"):
        preset.load_preset("search", str(path))
    assert preset.parse_assignments("search", {"search": SearchSettings}, [f"search.rounds={'9' * 5000}"])["rounds"]


def test_a_preset_with_a_table_of_another_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[serch]\nrounds = 3\n")
    with pytest.raises(
        DmsflowError,
        match=r"mine.toml: has an unknown table 'serch'; use only the tables \[search\] \[train\] \[export\] \[bench\]",
    ):
        preset.load_preset("search", str(path))


@pytest.mark.parametrize(("earlier", "present"), [(True, "float32"), (False, "none")])
def test_a_baseline_that_was_had_or_not_has_a_name(earlier, present):
    assert settings.with_present_names({"baseline": earlier}) == {"baseline": present}
    with pytest.raises(DmsflowError, match=f"setting baseline: has names now; use {present} for {earlier}"):
        settings.resolve(BenchSettings, baseline=earlier)
