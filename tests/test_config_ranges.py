"""The ranges that the types of the schema cannot say."""

import pytest

from cappy_lightning.config import BackboneConfig
from cappy_lightning.config_loading import check_config, load_config
from cappy_lightning.errors import InputError

SOURCE = "data.pool=pool.jsonl"


def refusal(*arguments: str) -> str:
    """The one line with which a config is refused."""
    with pytest.raises(InputError) as error:
        load_config(arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


OUT_OF_RANGE = {
    "scorer.activation": ["relu"],
    "scorer.truncate_instruction": ["middle"],
    "scorer.max_length": ["7"],
    "finetune.mode": ["half"],
    "finetune.lora_rank": ["0"],
    "finetune.lora_dropout": ["1", "-0.1", "nan"],
    "data.validation_fraction": ["0", "1", "nan"],
    "data.max_train": ["0"],
    "data.max_validation": ["0"],
    "label.mismatches": ["-1"],
    "data.workers": ["-1"],
    "data.lanes": ["0", "-4"],
    "data.window": ["63"],
    "data.on_error": ["ignore"],
    "data.caps": ["{'a': -1}"],
    "data.weights": ["{'a': -0.5}"],
    "backbone.template": ["'Question:'"],
    "backbone.shots": ["-1"],
    "backbone.max_tokens": ["0"],
    "backbone.kind": ["'gpt'"],
    "backbone.url": ["'http://x'"],
    "backbone.min_tokens": ["3", "-1"],
    "backbone.concurrency": ["0"],
    "backbone.timeout": ["0", "nan"],
    "backbone.retries": ["-1"],
    "backbone.batch_size": ["0"],
    "backbone.budget_tokens": ["-1"],
    "backbone.budget_usd": ["3"],
    "backbone.input_price": ["-1"],
    "select.by": ["greedy"],
    "select.folds": ["1"],
    "label.tokenizer": ["words"],
    "label.max_wrong_choices": ["-1"],
    "batch.micro_size": ["0"],
    "batch.validation_size": ["0"],
    "batch.global_size": ["0", "33", "-32"],
    "optimizer.learning_rate": ["0", "nan"],
    "optimizer.weight_decay": ["-1"],
    "optimizer.warmup": ["-0.1", "1.1", "nan"],
    "optimizer.ranking": ["-1", "nan", "inf"],
    "trainer.epochs": ["0", "nan"],
    "trainer.max_steps": ["0"],
    "trainer.validations": ["0"],
    "trainer.checkpoint_every": ["0"],
    "trainer.accelerator": ["tpu"],
    "trainer.devices": ["-1"],
    "trainer.nodes": ["-1"],
    "trainer.strategy": ["fsdp"],
    "trainer.precision": ["16"],
    "trainer.gradient_clip": ["0"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in OUT_OF_RANGE.items() for value in values])
def test_a_value_out_of_range_is_refused_by_the_name_of_its_key(key: str, value: str) -> None:
    message = refusal(SOURCE, f"{key}={value}")
    assert message.startswith(f"{key}: is ")
    assert ", expected " in message
    assert value.strip("'") in message


@pytest.mark.parametrize("value", ["trainer.epochs=inf", "optimizer.learning_rate=inf", "seed=-1"])
def test_a_value_that_no_training_can_use_is_refused(value: str) -> None:
    assert refusal(SOURCE, value).startswith(value.split("=")[0])


def test_a_password_in_an_address_is_refused_and_not_shown() -> None:
    message = refusal(SOURCE, "backbone.kind=openai", "backbone.url=https://me:secret@x/v1")
    assert message.startswith("backbone.url: holds a name or a password")
    assert "secret" not in message


@pytest.mark.parametrize("key", ["trainer.devices", "trainer.nodes"])
def test_no_device_at_all_is_refused(key: str) -> None:
    assert refusal(SOURCE, f"{key}=0").startswith(f"{key}: is 0")


@pytest.mark.parametrize("decodings", [{}, {"greedy": 0}, {"greedy": 0, "top_k_4": 0}])
def test_no_decoding_at_all_is_refused(decodings: dict[str, int]) -> None:
    config = load_config([SOURCE])
    config.backbone = BackboneConfig(decodings=decodings)
    with pytest.raises(InputError) as error:
        check_config(config)
    assert str(error.value) == f"backbone.decodings: is {decodings}, expected at least one decoding"


def test_decodings_that_a_recipe_all_leaves_out_are_refused() -> None:
    none = [f"backbone.decodings.{name}=0" for name in BackboneConfig().decodings]
    assert refusal(SOURCE, *none).endswith(", expected at least one decoding")
    assert load_config([SOURCE, *none[1:]]).backbone.decodings["greedy"] == 1


@pytest.mark.parametrize("key", ["data.max_train", "data.max_validation"])
def test_instances_are_not_capped(key: str) -> None:
    for more in ([], ["data.validation_instances=v"]):
        message = refusal("data.instances=shards", *more, f"{key}=3")
        assert message == f"{key}: is 3, expected null beside data.instances"
    load_config([SOURCE, f"{key}=3"])


@pytest.mark.parametrize(("size", "devices", "nodes"), [(4, 1, 1), (4, 2, 1), (2, 2, 2), (1, 8, 2)])
def test_the_step_is_a_whole_number_of_forwards_on_all_ranks(size: int, devices: int, nodes: int) -> None:
    world = [SOURCE, f"batch.micro_size={size}", f"trainer.devices={devices}", f"trainer.nodes={nodes}"]
    forward = size * devices * nodes
    load_config([*world, f"batch.global_size={3 * forward}"])
    if forward > 1:
        assert f"expected a multiple of {forward} (" in refusal(*world, f"batch.global_size={3 * forward + 1}")


def test_ranks_that_do_not_divide_the_lanes_are_refused() -> None:
    message = refusal("conf/quickstart.yaml", "trainer.devices=3", "batch.global_size=24", "batch.micro_size=8")
    assert message == "data.lanes: is 64, expected a multiple of the number of ranks (3)"


def test_a_ranking_loss_wants_several_pairs_of_a_lane_in_a_step() -> None:
    words = (SOURCE, "optimizer.ranking=1", "batch.global_size=32")
    assert refusal(*words).startswith("data.lanes: is 64, expected at most half of batch.global_size (32) beside")
    load_config([*words, "data.lanes=16"])


@pytest.mark.parametrize("key", ["data.validation_instances", "data.test_instances"])
def test_held_out_instances_without_training_instances_are_refused(key: str) -> None:
    assert refusal(SOURCE, f"{key}=[x]") == f"{key}: stands without data.instances, expected both"
