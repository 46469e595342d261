"""A config is read strictly, and what is wrong in it is named."""

from pathlib import Path

import pytest
import yaml

from search.config import SearchConfig, load_config
from spaces import UserError
from trainers.datasets.config import Cifar10Config, DigitsConfig, FolderConfig


def test_without_a_file_the_embedded_search():
    config = load_config()
    assert config == SearchConfig()
    assert config.data.name == "digits"
    assert config.search.objective == "score"
    assert config.search.mode == "min"


def test_yaml_and_back(tmp_path):
    path = tmp_path / "config.yaml"
    changed = load_config(overrides=["search.trials=7", "student.quantization.weight_bits=4"])
    path.write_text(changed.to_yaml())
    assert load_config(path) == changed
    assert yaml.safe_load(path.read_text())["promotion"]["seeds"] == 3


def test_an_empty_file_is_the_defaults(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing but defaults\n")
    assert load_config(tmp_path / "empty.yaml") == SearchConfig()


def test_overrides_are_yaml_values_in_order(tmp_path):
    config = load_config(
        overrides=[
            "search.trials=5",
            "search.trials=6",
            "search.warm_start=[none, cutmix]",
            "student.recipe.learning_rate=1e-2",
            "cluster.concurrent_trials=null",
            "search.objective=validation_accuracy",
        ]
    )
    assert config.search.trials == 6
    assert config.search.warm_start == ("none", "cutmix")
    assert config.student.recipe.learning_rate == 0.01
    assert config.search.mode == "max"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("search.trails=3", r"unknown key 'trails' .*did you mean 'trials'"),
        ("serch.trials=3", "unknown key 'serch' .*did you mean 'search'"),
        ("search.trials.more=3", "no key 'more', what is above it is a single value"),
        ("search.trials", "give KEY.PATH=VALUE"),
        ("search.trials=[", "is not YAML"),
        ("search.trials=0", "search.trials: .*greater than or equal to 1, got 0"),
        ("search.trials=many", "search.trials: .*integer"),
        ("student.quantization.weight_bits=9", "weight_bits: .*less than or equal to 8, got 9"),
        ("student.quantization.activation_bits=0", "activation_bits: .*equal to 1, got 0"),
        ("search.objective=scor", "unknown objective 'scor': did you mean 'score'"),
        ("search.further_objectives=[scor]", "unknown objective 'scor': did you mean 'score'"),
        ("search.further_objectives=[score]", "every objective may be there once"),
        ("search={further_objectives: [cmi], scheduler: asha}", "know one objective"),
        ("search.budget.hours=0", "search.budget.hours: .*greater than 0, got 0"),
        ("teacher.policy={chains: []}", "teacher.policy.chains"),
        ("search=3", "search: should be a mapping of keys to values, got 3"),
        ("search.trials=true", "search.trials: .*integer, got True"),
        ("search.seed=2024-13-45", "is not YAML"),
        ("search.seed=!!int foo", "is not YAML"),
        ("teacher.learning_rate=.inf", "teacher.learning_rate: .*finite number, got inf"),
        ("teacher.learning_rate=fast", "teacher.learning_rate: .*valid number, got 'fast'"),
        ("teacher.seed=99999999999999999999", "teacher.seed: .*less than"),
        ("teacher.policy.chains.0.weight=2", "a list, which is set as a whole"),
        ("search.warm_start=none", "search.warm_start: should be a list, got 'none'"),
        ("data.name=cifar11", "unknown data.name 'cifar11' .*did you mean 'cifar10'"),
        ("data.name=folder", "data.path: field required"),
        ("data.validation_image=9", "unknown key 'validation_image' .*'validation_images'"),
        (
            "data.validation_images=0",
            r"data.validation_images: .*greater than or equal to 1, got 0",
        ),
        (
            "data={name: cifar10, validation_images: 0}",
            r"data.validation_images: .*equal to 1, got 0",
        ),
        ("data={name: cifar10, validation_images: few}", r"data.validation_images: .*got 'few'"),
        ("data={name: cifar100, image_size: 3}", "unknown key under data 'image_size'"),
        (
            "cluster.gpus_per_trial=0.00001",
            r"gpus_per_trial: should be 0\.0001, the least that Ray counts",
        ),
        ("data=digits", "data: should be a mapping of keys to values, got 'digits'"),
    ],
)
def test_wrong_overrides_are_named(override, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        load_config(overrides=[override])
    assert f"--set {override}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides_need_be_right_together_only():
    """Also where a name that needs other keys comes before them, and one that they break after."""
    images = load_config(overrides=["data.name=folder", "data.path=images", "data.seed=3"])
    assert images.data == FolderConfig(path=Path("images"), seed=3)
    front = ["search.scheduler=asha", "search.further_objectives=[cmi]", "search.scheduler=none"]
    assert load_config(overrides=front).search.further_objectives == ("cmi",)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["search.trials=0", "promotion.top=2"], ["search.trials=0"]),
        (["promotion.top=2", "search.trials=0"], ["search.trials=0"]),
        (["data.name=folder", "data.seed=3"], ["data.name=folder"]),
        (["data.name=folder", "data.sed=3"], ["data.name=folder", "data.sed=3"]),
        (
            ["search.scheduler=asha", "search.further_objectives=[cmi]", "search.trials=9"],
            ["search.further_objectives=[cmi]"],
        ),
        (["search.trials=0", "search.trials=5", "promotion.top=0"], ["promotion.top=0"]),
    ],
)
def test_the_override_that_broke_it_is_named(overrides, named):
    with pytest.raises(UserError) as caught:
        load_config(overrides=overrides)
    said = " ".join(f"--set {override}" for override in named)
    assert said in str(caught.value)
    assert str(caught.value).count("--set") == len(named)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("search: {trails: 3}", "unknown key under search 'trails' .*did you mean 'trials'"),
        ("serch: {}", "unknown key 'serch' .*did you mean 'search'"),
        ("student: {recipe: {loss: {temprature: 2}}}", "did you mean 'temperature'"),
        ("teacher: {policy: {chains: [{operations: [{nam: x}]}]}}", "did you mean 'name'"),
        ("data: {nme: digits}", "unknown key under data 'nme' .*did you mean 'name'"),
        ("data: {train_image: 50}", "under data 'train_image' .*did you mean 'train_images'"),
        ("data: {name: parquet, lable_column: x}", "data 'lable_column' .*mean 'label_column'"),
        ("data: {name: cifar10, base: {operation: []}}", "under data.base .*mean 'operations'"),
        ("- 1", "a config maps keys to values, got a list"),
        ("search: [", "not YAML"),
        ("promotion: {top: 0}", "promotion.top"),
        ("search: {trials: 3}\nsearch: {trials: 4}", "the key 'search' is there twice"),
        ("search: {seed: 2024-13-45}", "not YAML"),
        ("[" * 3000, "not YAML"),
        ("search: {trials: [" + "1, " * 20_000 + "]}", "search.trials"),
    ],
)
def test_wrong_files_are_named(text, sentence, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence) as caught:
        load_config(path)
    assert "wrong.yaml" in str(caught.value)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_digits_are_meant_where_no_data_set_is_named(tmp_path):
    (tmp_path / "config.yaml").write_text("data: {validation_images: 200}")
    config = load_config(tmp_path / "config.yaml")
    assert config == load_config(overrides=["data.validation_images=200"])
    assert config.data == DigitsConfig(validation_images=200)


def test_another_data_set_has_keys_and_defaults_of_its_own(tmp_path):
    config = load_config(overrides=["data.name=cifar10", "data.validation_images=0.2"])
    assert config.data == Cifar10Config(validation_images=0.2)
    images = load_config(overrides=["data={name: folder, path: images}", "data.seed=3"])
    assert images.data == FolderConfig(path=Path("images"), seed=3)
    (tmp_path / "config.yaml").write_text(images.to_yaml())
    assert load_config(tmp_path / "config.yaml") == images


def test_the_name_that_is_there_already_changes_nothing():
    same = load_config(overrides=["data.train_images=800", "data.name=digits"])
    assert same.data == DigitsConfig(train_images=800)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.yaml: cannot read the config: No such file"):
        load_config(tmp_path / "nowhere.yaml")


def test_merge_keys_of_yaml_are_understood(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("search: {trials: 9}\npromotion: {<<: &two {top: 2}, seeds: 2}\n")
    assert load_config(path).promotion.model_dump(include={"top", "seeds"}) == {
        "top": 2,
        "seeds": 2,
    }
