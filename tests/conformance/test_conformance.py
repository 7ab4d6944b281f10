"""Every method of the registry against every check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conformance_checks import CHECKS, Knob, Scene, Subject

from amiss.methods import METHODS

# Generators that learned for a second make much the same of every code, and are told so.
pytestmark = pytest.mark.filterwarnings("ignore::amiss.errors.TrainingWarning")


def _weights_file(folder: Path) -> str:
    """Weights of the tiny network, drawn from another seed, in a file."""
    import timm
    from safetensors.torch import save_file

    path = folder / "tiny.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        model = timm.create_model("test_efficientnet", features_only=True, pretrained=False)
    save_file(model.state_dict(), path)
    return str(path)


# What makes a method quick here, and other values for the options that cannot suggest their own.
# A method without an entry is fitted with its defaults.
TINY_BACKBONE: dict[str, Any] = {
    "backbone": "test_efficientnet",
    "weights": "random",
    "image_size": (48, 64),
    "layers": ("4", "8"),
}
TINY_GAN: dict[str, Any] = {
    "image_size": (32, 48),
    "width": 4,
    "latent_dim": 8,
    "epochs": 12,
    "batch_size": 4,
}
TINY_AUTOENCODER: dict[str, Any] = {
    "image_size": (32, 48),
    "width": 4,
    "scales": 2,
    "epochs": 25,
    "batch_size": 4,
    "learning_rate": 3e-3,
}
TINY_FLOW: dict[str, Any] = {
    **TINY_BACKBONE,
    "blocks": 2,
    "epochs": 8,
    "batch_size": 4,
    "vectors": 256,
    "learning_rate": 2e-3,
    "standardize": True,
}
QUICK: dict[str, dict[str, Any]] = {
    "autoencoder": TINY_AUTOENCODER,
    "memae": {**TINY_AUTOENCODER, "network": "deep", "items": 12, "shrinkage": 0.05},
    "nfad": TINY_FLOW,
    "bgad": {**TINY_FLOW, "normal_epochs": 2, "synthesis": "perlin"},
    "daad": {**TINY_AUTOENCODER, "division": (4, 4, 1), "items": 12},
    "anogan": {**TINY_GAN, "learning_rate": 2e-3, "search_steps": 40, "search_rate": 0.05},
    "dcgan": {**TINY_GAN, "learning_rate": 2e-3},
    "egbad": {**TINY_GAN, "network": "deep", "learning_rate": 2e-3, "average": 0.9},
    "fanogan": {
        **TINY_GAN,
        "epochs": 2,
        "encoder_learning_rate": 3e-3,
        "encoder_epochs": 40,
        "score": "izi",  # features of a critic that learned for two steps say little
    },
    "wgan": {**TINY_GAN, "learning_rate": 5e-4, "clip": 0.1},
    "wgan_gp": {**TINY_GAN, "learning_rate": 2e-3},
    "fyd": {**TINY_BACKBONE, "dim": 20, "head_dim": 16, "epochs": 2, "batch_size": 4},
    "ganomaly": {
        "image_size": (48, 64),
        "width": 8,
        "latent_dim": 8,
        "epochs": 60,
        "batch_size": 2,
        "learning_rate": 2e-3,
        "enc_weight": 100.0,  # of six images codes are learned by heart before they agree
    },
    "mkd": {
        "backbone": "test_efficientnet",
        "weights": "random",
        "image_size": (64, 96),
        "epochs": 12,
        "batch_size": 4,
    },
    "padim": {**TINY_BACKBONE, "dim": 20},
    "patchcore": {**TINY_BACKBONE, "coreset_ratio": 0.1, "folds": 4},
    "spade": {**TINY_BACKBONE, "descriptor_layer": "8", "num_images": 3},
    "uninformed_students": {
        "teacher": "random",
        "image_size": (48, 64),
        "patch_sizes": (17,),
        "students": 2,
        "stride": 4,
        "width": 0.05,
        "epochs": 4,
        "learning_rate": 3e-3,
    },
}
LESSONS: dict[str, Any] = {
    "teacher": "distill",
    "backbone": "test_efficientnet",
    "weights": "random",
    "teacher_steps": 2,
    "teacher_batch": 8,
    "triplet_weight": 1.0,
    "epochs": 1,
}


def _teachers_file(folder: Path) -> str:
    """Students, and so teachers, of another seed in a file."""
    from amiss import Run, UninformedStudents

    detector = UninformedStudents(**QUICK["uninformed_students"] | {"epochs": 1})
    detector.fit(folder / "other", max_false_alarm=0.9, run=Run(seed=99))
    return str(detector.save(folder / "teachers.amiss"))


BACKBONE_KNOBS: dict[str, Knob] = {
    "backbone": Knob("test_resnet"),
    "layers": Knob(("8", "16")),
    "weights": Knob(_weights_file),
    # The tiny EfficientNet was trained with ImageNet's statistics, the tiny ResNet was not.
    "normalization": Knob(None, given={"backbone": "test_resnet"}),
}
PLUS: dict[str, Any] = {"adversarial": True, "discriminator_width": 4}
RPAG: dict[str, Any] = {"synthesis": "rpag"}
KNOBS: dict[str, dict[str, Knob]] = {
    "nfad": BACKBONE_KNOBS,
    "bgad": {
        **BACKBONE_KNOBS,
        "transforms": Knob(1, given=RPAG),
        "placement": Knob(None, given=RPAG),
        "focal": Knob(None, given={"normalizer": 1.0}),
    },
    "memae": {
        "network": Knob("cifar", given={"width": 32, "scales": 4}),
        "shrinkage": Knob(0.08),
    },
    "daad": {
        "division": Knob((2, 2, 1)),
        "discriminator_width": Knob(8, given=PLUS),
        "generator_loss": Knob("minimax", given=PLUS),
        "rec_weight": Knob(1.0, given=PLUS),
        "adv_weight": Knob(50.0, given=PLUS),
        "ali_weight": Knob(50.0, given=PLUS),
        "gamma": Knob(0.1, given=PLUS),
    },
    "fyd": {  # takes networks apart after their stages, which the tiny ResNet does not allow
        **BACKBONE_KNOBS,
        "backbone": Knob("mobilenetv2_035"),
        "normalization": Knob(None, given={"backbone": "tf_efficientnet_lite0"}),
    },
    "mkd": {
        **BACKBONE_KNOBS,
        "layers": Knob(("4", "8")),
        "direction_weight": Knob(3.0),
        "judged_points": Knob(2),
        "value_weight": Knob(2.0, given={"direction_weight": 1.0}),
        "smooth_samples": Knob(3, given={"localization": "smoothgrad", "smooth_samples": 2}),
        "smooth_noise": Knob(None, given={"localization": "smoothgrad", "smooth_samples": 2}),
    },
    "anogan": {
        "tolerance": Knob(1.0, given={"patience": 2}),
        "patience": Knob(2),
        "restarts": Knob(8, given={"search_steps": 1}),
        "keep": Knob(
            "best",
            given={"learning_rate": 2e-4, "epochs": 60, "search_rate": 10.0, "search_steps": 10},
        ),
        "clamp_codes": Knob(None, given={"latent": "uniform", "search_rate": 1.0}),
    },
    "egbad": {"image_size": Knob((48, 32))},
    "fanogan": {
        "beta1": Knob(0.5),
        "kappa": Knob(0.0),
        "score_kappa": Knob(0.0, given={"score": "izi_f"}),
    },
    "wgan_gp": {"beta1": Knob(0.5), "drift": Knob(1.0)},
    "padim": BACKBONE_KNOBS,
    "spade": {
        **BACKBONE_KNOBS,
        "layers": Knob(("4",)),
        "descriptor_layer": Knob("32"),
        "calibration_maps": Knob(3),
    },
    "uninformed_students": {
        "patch_sizes": Knob((33,)),
        "stride": Knob(8),
        "teacher": Knob(_teachers_file),
        **{
            name: Knob(value, given=LESSONS)
            for name, value in (
                ("distill_data", lambda folder: str(folder / "other")),
                ("backbone", "test_resnet"),
                ("weights", _weights_file),
                ("teacher_steps", 3),
                ("teacher_batch", 6),
                ("teacher_learning_rate", 1e-2),
                ("crop_grid", 2),
                ("crop_low", 1.0),
                ("crop_high", 5.0),
                ("distill_weight", 0.0),
                ("triplet_weight", 0.0),
                ("compactness_weight", 0.0),
                ("margin", 0.0),
            )
        },
    },
    "patchcore": {
        **BACKBONE_KNOBS,
        "layer_dim": Knob(40, given={"embedding": "adaptive", "target_dim": 64}),
        "target_dim": Knob(40, given={"embedding": "adaptive", "layer_dim": 64}),
    },
}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene.build(tmp_path_factory.mktemp("scene"))


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_conforms(method: str, name: str, scene: Scene) -> None:
    subject = Subject(method, METHODS[method], QUICK.get(method, {}), KNOBS.get(method, {}))
    CHECKS[name](subject, scene)


# Other forms of a method, against what scores, maps and files have to hold.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "autoencoder-ssim": ("autoencoder", {**TINY_AUTOENCODER, "skip": True, "loss": "ssim"}),
    "memae-cifar": (
        "memae",
        {"image_size": (32, 48), "epochs": 40, "batch_size": 4, "learning_rate": 3e-3,
         "network": "cifar", "items": 12, "query": "position", "similarity": "dot"},
    ),
    "daad-plus": ("daad", {**QUICK["daad"], **PLUS, "norm": "mse"}),
}  # fmt: skip
OF_VARIANTS = (
    "the_same_seed_gives_the_same_bytes",
    "shapes_are_as_declared",
    "any_image_has_finite_scores",
    "scores_do_not_depend_on_batch_mates",
    "a_planted_defect_scores_above_its_clean_twin",
    "the_peak_of_the_map_lies_in_the_defect",
    "a_roi_of_everything_changes_nothing",
    "the_map_is_zero_outside_the_roi",
    "what_lies_outside_the_roi_is_not_learned",
    "a_fresh_process_scores_bit_for_bit_alike",
    "an_export_agrees_or_the_reason_is_given",
)


@pytest.mark.parametrize("name", OF_VARIANTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_other_forms_conform(variant: str, name: str, scene: Scene) -> None:
    method, options = VARIANTS[variant]
    CHECKS[name](Subject(method, METHODS[method], options, {}), scene)


def test_no_entry_is_left_over_in_the_tables() -> None:
    assert set(QUICK) | set(KNOBS) <= set(METHODS) and set(OF_VARIANTS) <= set(CHECKS)
