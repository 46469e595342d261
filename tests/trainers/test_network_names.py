"""Networks by name: of torchvision, of timm, of the user's own modules; and what fits them."""

import copy
import sys

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from spaces import UserError
from trainers.models import OWN, CifarResNet, Network, build_network, made_of
from trainers.models.image_size import require_fitting, total_stride

TORCHVISION = [  # a small one of each of several families
    "resnet18",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
]
FACTORY = """
import torch
from torch import nn

def tiny(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, num_classes))

def stubborn(num_classes):
    return nn.Linear(3, 2)

def wrong_classes(num_classes):
    return tiny(num_classes + 1)

class Pair(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.net = tiny(num_classes)

    def forward(self, x):
        return self.net(x), x

def text(num_classes):
    return "a network"

def deep(num_classes, depth):
    return tiny(num_classes)

number = 3
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `mine` with a module `nets` in the current folder."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("")
    (tmp_path / "mine" / "nets.py").write_text(FACTORY)
    (tmp_path / "mine" / "lacking.py").write_text("import no_such_package_of_theirs\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


@pytest.mark.parametrize("name", TORCHVISION)
def test_a_classifier_of_torchvision_gives_logits_learns_and_can_be_copied(name):
    model = build_network(f"torchvision:{name}", 7, seed=0)
    require_fitting(model, name, (32, 32), 7)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    twin = copy.deepcopy(model).eval()
    with torch.random.fork_rng(devices=[]):
        assert model.train()(images).shape == (2, 7)
    model.load_state_dict(twin.state_dict())
    torch.testing.assert_close(twin(images), model.eval()(images))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_with_further_outputs_in_training_have_one(name):
    model = build_network(f"torchvision:{name}", 5, seed=0).train()
    with torch.random.fork_rng(devices=[]):
        assert model(torch.zeros(2, 3, 96, 96)).shape == (2, 5)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "resnet10t.c3_in1k"])
def test_a_classifier_of_timm_gives_logits(name):
    pytest.importorskip("timm")
    model = build_network(f"timm:{name}", 7, seed=0)
    require_fitting(model, name, (32, 32), 7)


def test_weights_depend_on_the_seed_alone_whosever_the_network_is():
    before = torch.random.get_rng_state()
    first, again, other = (
        build_network("torchvision:squeezenet1_1", 3, seed=seed).state_dict() for seed in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_a_factory_of_the_users_own_is_called_with_the_number_of_classes(package):
    model = build_network("mine.nets:tiny", 6, seed=0)
    require_fitting(model, "mine.nets:tiny", (8, 8), 6)
    assert model[-1].out_features == 6


def test_the_code_of_a_factory_tells_its_teachers_apart(package):
    before = made_of("mine.nets:tiny")
    (package / "mine" / "nets.py").write_text(FACTORY + "\n# another\n")
    assert made_of("mine.nets:tiny") != before
    assert made_of("resnet8") == ""
    assert made_of("torchvision:resnet18")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("resnet18", "did you mean 'resnet8'"),
        ("resnet18", "torchvision:NAME"),
        ("torchvision:", "give torchvision:NAME"),
        (":tiny", "give torchvision:NAME"),
        ("torchvision:mobilnet_v2", "nearest: mobilenet_v2"),
        ("torchvision:fcn_resnet50", "has no classifier 'fcn_resnet50'"),
        ("timm:resnet81", "has no classifier 'resnet81'"),
        ("timm:hf-hub:someone/resnet18", "has no classifier 'hf-hub:someone/resnet18'"),
        ("nowhere.nets:tiny", "there is no module 'nowhere'"),
        ("mine.net:tiny", "there is no module 'mine.net'"),
        ("mine.nets:tinny", "nearest: tiny"),
        ("mine.nets:number", "cannot be called"),
        ("mine.nets:deep", "with num_classes alone: missing a required argument: 'depth'"),
        ("mine.nets:text", "must return a torch.nn.Module, got a str"),
    ],
)
def test_a_name_that_leads_nowhere_gets_a_sentence(package, name, sentence):
    with pytest.raises(UserError) as error:
        build_network(name, 10, seed=0)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_timm_is_asked_for_only_where_it_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    build_network("resnet8", 10, width=4, seed=0)
    with pytest.raises(UserError, match=r"needs the package timm: pip install 'augury\[timm\]'"):
        build_network("timm:resnet18", 10, seed=0)


def test_what_the_users_module_lacks_is_not_taken_for_its_own_name(package):
    with pytest.raises(ModuleNotFoundError, match="no_such_package_of_theirs"):
        build_network("mine.lacking:net", 10, seed=0)


def narrow(name: str) -> nn.Module:
    """The network for ten classes, with few channels where it is ours."""
    return build_network(name, 10, width=4 if name in OWN else None, seed=0)


@pytest.mark.parametrize(
    ("name", "stride"),
    [
        ("resnet8", 4),
        ("vgg8", 16),
        ("torchvision:resnet18", 32),
        ("torchvision:mobilenet_v3_small", 32),
        ("torchvision:squeezenet1_1", 16),
    ],
)
def test_the_total_stride_is_the_product_of_the_strides_on_the_way(name, stride):
    assert total_stride(narrow(name)) == stride


@pytest.mark.parametrize(
    ("name", "size", "sentence"),
    [
        ("vgg8", (32, 12), "at least 16 pixels, got 32x12"),
        ("torchvision:resnet18", (16, 16), "at least 32 pixels, got 16x16"),
        ("torchvision:squeezenet1_1", (16, 16), "at least 17 pixels, got 16x16"),
        ("timm:vit_tiny_patch16_224", (32, 32), "takes images of 224x224 pixels only, got 32x32"),
    ],
)
def test_images_that_do_not_fit_are_refused_with_what_fits(name, size, sentence):
    model = narrow(name)
    with pytest.raises(UserError) as error:
        require_fitting(model, name, size, 10)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("factory", "sentence"),
    [
        ("wrong_classes", r"\(N, 10\), one for each class, got \(N, 11\)"),
        ("Pair", "must give logits, a tensor, got a tuple"),
    ],
)
def test_what_is_no_classifier_of_these_classes_is_refused(package, factory, sentence):
    model = build_network(f"mine.nets:{factory}", 10, seed=0)
    with pytest.raises(UserError, match=sentence):
        require_fitting(model, factory, (16, 16), 10)


def test_a_mistake_in_a_network_keeps_its_traceback(package):
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        require_fitting(build_network("mine.nets:stubborn", 10, seed=0), "x", (16, 16), 10)


def test_a_text_is_short_for_a_network_of_that_name():
    assert Network.model_validate("vgg8") == Network(name="vgg8")
    assert Network.model_validate({"name": "vgg8", "width": 8}).width == 8
    again = Network.model_validate(Network(name="vgg8", weights="a.pt").model_dump(mode="json"))
    assert again == Network(name="vgg8", weights="a.pt")


@pytest.mark.parametrize("content", [{"name": "torchvision:resnet18", "width": 8}, "vgg9", 3, {}])
def test_a_network_that_cannot_be_is_refused_as_it_is_read(content):
    with pytest.raises(ValidationError):
        Network.model_validate(content)


def test_a_copy_of_our_networks_is_of_the_same_kind():
    model = build_network("resnet8", 10, width=4, seed=0)
    assert isinstance(model, CifarResNet)
    assert isinstance(copy.deepcopy(model), nn.Module)
