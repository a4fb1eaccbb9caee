"""The schema: what a recipe may say, and how it is told what it may not."""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cappy_lightning.backbones import generate
from cappy_lightning.backbones.backbone import Answer, Request
from cappy_lightning.backbones.decoding import Decoding
from cappy_lightning.config import BACKBONE_OF_SERVE, BackboneConfig, Config
from cappy_lightning.config_loading import load_config
from cappy_lightning.errors import InputError
from cappy_lightning.records import Candidate, Example
from cappy_lightning.schema import all_keys, describe_keys, merge
from cappy_lightning.sources.jsonl import read_labelled_pools

SOURCE = "data.pool=pool.jsonl"
RECIPES = Path(__file__).parent.parent / "conf"


def refusal(*arguments: str) -> str:
    """The one line with which a config is refused."""
    with pytest.raises(InputError) as error:
        load_config(arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_default_config_needs_nothing_but_a_source() -> None:
    expected = Config(run_dir="runs/run")
    expected.data.pool = ["pool.jsonl"]
    assert load_config([SOURCE]) == expected


def test_what_comes_later_goes_before_what_came_earlier(tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yml"
    one.write_text("name: one\nseed: 1\ndata:\n  pool: a.jsonl\n  seed: 1\n  max_train: 1\n")
    two.write_text("seed: 2\ndata:\n  seed: 2\n")
    config = load_config([str(one), "data.max_train=2", str(two), "data.seed=3"])
    assert (config.name, config.seed, config.data.seed, config.data.max_train) == ("one", 2, 3, 2)
    assert load_config([str(two), str(one)]).seed == 1


def test_an_interpolation_is_made_of_the_last_values() -> None:
    assert load_config([SOURCE, "name=mine"]).run_dir == "runs/mine"
    assert load_config([SOURCE, "name=mine", "run_dir=out/${name}-${seed}", "seed=4"]).run_dir == "out/mine-4"


@pytest.mark.parametrize("key", ["data.instances", "data.validation_instances", "finetune.lora_targets"])
def test_a_single_value_stands_for_a_list_of_one(key: str) -> None:
    arguments = ["data.instances=[shards]"] if key != "finetune.lora_targets" else [SOURCE]
    for value in ("one", "[one]"):
        config: Any = load_config([*arguments, f"{key}={value}"])
        for part in key.split("."):
            config = getattr(config, part)
        assert config == ["one"]


def test_a_list_is_replaced_and_not_added_to() -> None:
    assert load_config(["data.instances=[a,b]", "data.instances=[c]"]).data.instances == ["c"]


def test_a_mapping_is_replaced_and_a_word_for_an_entry_changes_that_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decodings(*words: str) -> dict[str, int]:
        return load_config([SOURCE, *words]).backbone.decodings

    assert decodings("backbone.decodings={top_k_4: 2}") == {"top_k_4": 2}
    overlay = tmp_path / "few.yaml"
    overlay.write_text("backbone:\n  decodings:\n    beam_4: 1\n")
    for earlier in ("backbone.decodings={top_k_4: 2}", "backbone.decodings.top_k_4=2"):
        assert decodings(earlier, str(overlay)) == {"beam_4": 1}
        assert decodings(earlier, "backbone={decodings: {beam_4: 1}}") == {"beam_4": 1}
        monkeypatch.chdir(tmp_path)
        assert decodings(earlier, shutil.copy(overlay, "backbone.decodings.yaml")) == {"beam_4": 1}  # a file, no word
    assert decodings("backbone.decodings.sampling=8", "backbone.decodings.temperature_0.7=0") == {
        "greedy": 1,
        "sampling": 8,
        "temperature_0.7": 0,
        "nucleus_0.9": 4,
    }
    caps = ["data.caps={a: 1}", "data.caps.glue/*=2"]
    assert load_config(["data.instances=[x]", *caps]).data.caps == {"a": 1, "glue/*": 2}


def test_a_decoding_is_added_to_those_of_the_schema_and_a_count_of_0_leaves_one_of_them_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"sampling": 0, "temperature_0.7": 0, "top_k_4": 2}
    words = [f"backbone.decodings.{name}={n}" for name, n in changes.items()]
    config = load_config([SOURCE, *words, "backbone.shots=0"]).backbone
    assert config.decodings == {"greedy": 1, "sampling": 0, "temperature_0.7": 0, "nucleus_0.9": 4, "top_k_4": 2}

    class Parrot:
        group, model = 1, "parrot"

        def refuses(self, decoding: Decoding) -> None:
            return None

        def answer(self, requests: Iterator[Request], decodings: Sequence[Decoding]) -> Iterator[Answer]:
            for _ in requests:
                yield Answer(tuple(Candidate("a", d.name) for d in decodings for _ in range(d.n)))

    monkeypatch.setattr(generate, "open_backbone", lambda _: contextlib.nullcontext(Parrot()))
    generate.record_pools(lambda: [Example("t", "1", "i", ("a",))], config, tmp_path / "pool.jsonl")
    (pool,) = read_labelled_pools([tmp_path / "pool.jsonl"])
    assert [candidate.decoding for candidate in pool.candidates] == ["greedy", *["nucleus_0.9"] * 4, *["top_k_4"] * 2]


@pytest.mark.parametrize(
    ("recipe", "source"),
    [
        ("quickstart", []),
        ("adapt", [SOURCE]),
        ("bigbench", ["data.task=auto_categorization"]),
        ("pretrain", ["data.instances=[a,b]", "data.validation_instances=c"]),
    ],
)
@pytest.mark.parametrize("overlay", [[], [str(RECIPES / "smoke.yaml")]])
def test_every_recipe_that_is_shipped_is_a_config(recipe: str, source: list[str], overlay: list[str]) -> None:
    config = load_config([str(RECIPES / f"{recipe}.yaml"), *source, *overlay])
    assert config.run_dir.endswith("-smoke") == bool(overlay)


@pytest.mark.parametrize(
    ("sources", "found"),
    [
        ([], "none"),
        (["data.pool=''"], "none"),
        (["data.pool=a", "data.examples=b"], "data.pool and data.examples"),
        (["data.examples=a", "data.task=b"], "data.examples and data.task"),
        (["data.pool=a", "data.task=b", "data.instances=c"], "data.pool and data.instances"),
    ],
)
def test_exactly_one_source_is_accepted(sources: list[str], found: str) -> None:
    message = refusal("seed=1", *sources)
    assert message.startswith("data: expected one source (")
    assert message.endswith(f"found {found}")


def test_a_recorded_pool_of_a_task_is_one_source() -> None:
    assert load_config([SOURCE, "data.task=sums"]).data.task == "sums"


def test_validation_instances_do_not_stand_alone() -> None:
    assert refusal(SOURCE, "data.validation_instances=v").startswith("data.validation_instances: stands without")


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("scorer.bse=x", "unknown key 'scorer.bse', did you mean 'scorer.base'?"),
        ("trainer.acelerator=cpu", "did you mean 'trainer.accelerator'?"),
        ("qqqq=x", "unknown key 'qqqq'"),
        ("a..b=3", "unknown key 'a'"),
        ("=3", "unknown key ''"),
        ("scorer=x", "'scorer' is a section, expected keys below it"),
        ("scorer=null", "'scorer' is a section, expected keys below it"),
        ("name=null", "is null, expected a text"),
        ("seed=1.5", "is 1.5, expected an integer"),
        ("data.seed=x", "is 'x', expected an integer"),
        ("answer.stop=x", "is 'x', expected a number or null"),
        ("scorer.random_weights=maybe", "is 'maybe', expected true or false"),
        ("name=[a]", "is ['a'], expected a text"),
        ("scorer.config=3", "scorer.config=3: Cannot assign int to"),
        ("backbone.decodings.greedy=x", "backbone.decodings.greedy=x: Value 'x'"),
        ("data.task='x", "cannot be read as key=value ("),
        ("name=${", "cannot be read as key=value ("),
    ],
)
def test_a_bad_word_is_refused_by_its_own_text(argument: str, problem: str) -> None:
    message = refusal(SOURCE, argument)
    assert message.startswith(f"{argument}: ")
    assert problem in message


@pytest.mark.parametrize(
    ("argument", "key"), [("name=${nope}", "name"), ("name=${name}", "name"), ("run_dir=${env:HOME}", "run_dir")]
)
def test_an_interpolation_of_nothing_is_refused_by_its_key(argument: str, key: str) -> None:
    assert refusal(SOURCE, argument).startswith(f"{key}: ")


@pytest.mark.parametrize(
    "argument",
    [
        "data.instances=${nope}",
        "data.instances=???",
        "data.instances={a: 1}",
        "data.instances[0]=x",
        "scorer.config=[1]",
    ],
)
def test_a_container_of_the_wrong_kind_is_refused(argument: str) -> None:
    assert refusal(argument).startswith(argument if "${" not in argument else "data.instances[0]: ")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "is empty, expected 'key: value' lines"),
        (b"# nothing\n", "is empty, expected 'key: value' lines"),
        (b"- a\n- b\n", "is no mapping, expected 'key: value' lines"),
        (b"a: b: c\n", "is not valid YAML ("),
        (b"name: a\nname: b\n", "is not valid YAML ("),
        (b"name: !!python/object:os.system x\n", "is not valid YAML ("),
        (b"name: \xff\n", "is not UTF-8 text"),
        (b"name: a\nscorer:\n  bas: x\n", "unknown key 'scorer.bas', did you mean 'scorer.base'?"),
        (b"1: 2\n", "unknown key '1'"),
        (b"scorer:\n  - a\n", "'scorer' is a section, expected keys below it"),
        (b"scorer:\n", "'scorer' is a section, expected keys below it"),
        (b"data:\n  seed: x\n", "data.seed: is 'x', expected an integer"),
    ],
)
def test_a_bad_file_is_refused_by_its_name(tmp_path: Path, text: bytes, problem: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text)
    assert refusal(SOURCE, str(path)).startswith(f"{path}: {problem}")


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("slurm.time=24:00:00", "24:00:00"),
        ("slurm.time=2:30", "2:30"),
        ("data.task=no", "no"),
        ("data.task=2024-01-01", "2024-01-01"),
        ("seed=010", 10),
        ("optimizer.learning_rate=1e-5", 1e-5),
        ("optimizer.learning_rate=5", 5.0),
        ("finetune.lora_targets=[a, b]", ["a", "b"]),
        ("data.max_train=null", None),
    ],
)
def test_words_are_read_as_yaml_1_2_does(tmp_path: Path, word: str, value: object) -> None:
    section, _, rest = word.partition(".")
    key, _, text = (rest or section).partition("=")
    (tmp_path / "own.yaml").write_text(f"{section}: {{{key}: {text}}}\n" if rest else f"{key}: {text}\n")
    for source in (word, str(tmp_path / "own.yaml")):
        config = merge(Config, [source])
        assert getattr(getattr(config, section) if rest else config, key) == value


def test_a_file_with_a_mere_number_is_refused_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("3\n")
    assert "None" not in refusal(SOURCE, str(tmp_path / "recipe.yaml"))


def test_what_is_no_readable_file_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    assert refusal("no.yaml") == "no.yaml: cannot be read (No such file or directory)"
    assert "folder.yaml: cannot be read (" in refusal(str(tmp_path / "folder.yaml"))
    assert refusal("recipe").startswith(
        "recipe: is neither a .yaml file nor key=value; files with data are named by a key"
    )
    assert refusal().startswith("train: no recipe, expected RECIPE.yaml")


def test_a_value_may_end_like_a_recipe() -> None:
    assert load_config([SOURCE, "name=first.yaml"]).name == "first.yaml"


def test_the_help_describes_every_key() -> None:
    text, keys = describe_keys(Config), all_keys(Config)
    assert text.count("\n      ") == len(keys) == sum(1 for line in text.splitlines() if line.startswith("  ")) / 2
    for name, field in keys.items():
        assert f"  {name}  (" in text
        assert field.metadata["help"] in text
    assert len(keys) == sum(
        len(dataclasses.fields(value)) if dataclasses.is_dataclass(value) else 1 for value in vars(Config()).values()
    )
    assert describe_keys(BackboneConfig, "backbone.") in text
    some = describe_keys(BackboneConfig, "backbone.", BACKBONE_OF_SERVE)
    assert [line.split()[0] for line in some.splitlines()[::2]] == [f"backbone.{name}" for name in BACKBONE_OF_SERVE]


def test_a_single_value_for_a_list_may_refer_to_another_key() -> None:
    config = load_config(["data.pool=pools/${data.task}.jsonl", "data.task=tense"])
    assert config.data.pool == ["pools/tense.jsonl"]
