"""A frozen convolutional network as a flat list of steps, with batch normalisation folded away.

`fold` takes any traceable network apart; `FoldedNetwork` runs the steps and can be stored as JSON
plus weight tensors. A saved detector therefore needs no model zoo to be loaded, and no later
release of one can change what it computes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from amiss.nn.fused import runner

Step = dict[str, Any]
"""One step: `op`, `inputs` (numbers of earlier values, 0 is the image), and the op's settings."""

StepRunner = Callable[[int, Step, list[Tensor]], Tensor]
"""Number of a step, the step, its inputs -> its value."""

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: F.relu(x, inplace=True),
    "relu6": lambda x: F.relu6(x, inplace=True),
    "silu": lambda x: F.silu(x, inplace=True),
    "hardswish": lambda x: F.hardswish(x, inplace=True),
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
}
_ACTIVATION_TYPES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.Sigmoid: "sigmoid",
    nn.Hardsigmoid: "hardsigmoid",
}


class CannotFoldError(Exception):
    """The network holds something that has no step here; the caller keeps it as it is."""


class FoldedNetwork(nn.Module):
    """Runs steps in order: images (B, C, H, W) float32 -> the listed values (B, C_l, H_l, W_l).

    Weights are channels-last; every intermediate value is dropped after its last use.
    """

    def __init__(
        self, steps: Sequence[Step], outputs: Sequence[int], tensors: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        self.steps = [dict(step) for step in steps]
        self.outputs = list(outputs)
        numbers = [n for n, step in enumerate(self.steps, 1) if step["op"] == "conv"]
        wanted = {f"{part}_{n}" for n in numbers for part in ("weight", "bias")}
        if set(tensors) != wanted:
            odd = sorted(set(tensors) ^ wanted)
            raise ValueError(f"the network's tensors do not fit its steps: {odd[0]}")
        for name, tensor in tensors.items():
            layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
            self.register_buffer(name, tensor.detach().contiguous(memory_format=layout))
        self.last_use = _last_use(self.steps, self.outputs)

    def forward(self, images: Tensor) -> list[Tensor]:
        # Where nobody asks for gradients or for the graph, oneDNN may take whole layers.
        if torch.is_inference_mode_enabled() and not torch.compiler.is_compiling():
            run = runner(self, images)
            if run is not None:
                return run(images)
        return self.walk(images, self.run_step)

    def walk(self, images: Tensor, run_step: StepRunner) -> list[Tensor]:
        """All steps in order, each computed by `run_step`."""
        values: dict[int, Tensor] = {0: images}
        for number, step in enumerate(self.steps, 1):
            inputs = [values[i] for i in step["inputs"]]
            values[number] = run_step(number, step, inputs)
            del inputs
            for i in self.last_use[number]:
                del values[i]
        return [values[i] for i in self.outputs]

    def run_step(self, number: int, step: Step, inputs: list[Tensor]) -> Tensor:
        """The value of one step."""
        op = step["op"]
        if op == "conv":
            value = self._convolve(number, step, inputs[0])
        elif op == "add":
            value = inputs[0] + inputs[1]
        elif op == "multiply":
            value = inputs[0] * inputs[1]
        elif op == "spatial_mean":
            value = inputs[0].mean((2, 3), keepdim=True)
        elif op == "max_pool":
            value = F.max_pool2d(inputs[0], step["kernel"], step["stride"], step["padding"])
        else:  # "activation" alone; in place is not safe here, the input may be needed later
            return _ACTIVATIONS[step["activation"]](inputs[0].clone())
        return _ACTIVATIONS[step["activation"]](value) if step.get("activation") else value

    def padding(self, number: int, x: Tensor) -> tuple[tuple[int, ...] | None, tuple[int, ...]]:
        """What to pad x (B, C, H, W) with before convolution `number`, as `F.pad` takes it, or
        None; and the padding that the convolution does by itself."""
        step = self.steps[number - 1]
        if step["padding"] != "same":
            return None, tuple(step["padding"])
        kernel = getattr(self, f"weight_{number}").shape[2:]
        return _pad_same(x.shape[2:], kernel, step["stride"], step["dilation"])

    def _convolve(self, number: int, step: Step, x: Tensor) -> Tensor:
        weight, bias = getattr(self, f"weight_{number}"), getattr(self, f"bias_{number}")
        pad, padding = self.padding(number, x)
        if pad is not None:
            x = F.pad(x, pad)
        return F.conv2d(x, weight, bias, step["stride"], padding, step["dilation"], step["groups"])


def _pad_same(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, ...] | None, tuple[int, ...]]:
    """TensorFlow's SAME: output = ceil(input / stride), the odd pixel at the bottom and right.

    Returns as `FoldedNetwork.padding`.
    """
    low, high = [], []
    for n, k, s, d in zip(size, kernel, stride, dilation, strict=True):
        total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
        low.append(total // 2)
        high.append(total - total // 2)
    if low == high:  # symmetric: the convolution pads by itself, without a copy
        return None, (low[0], low[1])
    return (low[1], high[1], low[0], high[0]), (0, 0)


def _last_use(steps: Sequence[Step], outputs: Sequence[int]) -> dict[int, list[int]]:
    last: dict[int, int] = {}
    for number, step in enumerate(steps, 1):
        for i in step["inputs"]:
            last[i] = number
    dropped: dict[int, list[int]] = {number: [] for number in range(1, len(steps) + 1)}
    for i, number in last.items():
        if i not in outputs:
            dropped[number].append(i)
    return dropped


# --- taking a network apart ----------------------------------------------------------------


class _LeafTracer(fx.Tracer):
    """Stops at convolutions, normalisations, activations and pools, whoever defined them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaf = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.Identity, nn.Dropout)
        return isinstance(m, leaf) or type(m) in _ACTIVATION_TYPES


def fold(network: nn.Module) -> FoldedNetwork:
    """The same function as `network` in evaluation mode, as steps with batch norm folded.

    `network`: images (B, C, H, W) -> list of feature maps. Steps that no output needs are left out.

    Raises:
        CannotFoldError: an operation without a counterpart; says which.
    """
    try:
        graph = _LeafTracer().trace(network)
    except Exception as error:  # tracing runs foreign code; anything may come out of it
        raise CannotFoldError(f"tracing failed: {error}") from error
    builder = _Builder(dict(network.named_modules()))
    needed = _needed(graph)
    for node in graph.nodes:
        if node in needed:
            builder.visit(node)
    return builder.finish()


def _needed(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that some output depends on; deeper stages of the network fall away."""
    needed: set[fx.Node] = set()
    waiting = [node for node in graph.nodes if node.op in {"placeholder", "output"}]
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting.extend(node.all_input_nodes)
    return needed


class _Builder:
    """Turns fx nodes into steps, one at a time, in order."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.modules = modules
        self.steps: list[Step] = []
        self.tensors: dict[str, Tensor] = {}
        self.value: dict[fx.Node, int] = {}
        self.outputs: list[int] = []

    def visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.value[node] = 0
        elif node.op == "output":
            self.outputs = [self.value[n] for n in cast("list[fx.Node]", node.args[0])]
        elif node.op == "call_module":
            self._module(node, self.modules[str(node.target)])
        else:
            self._function(node)

    def _inputs(self, node: fx.Node) -> list[int]:
        return [self.value[n] for n in node.all_input_nodes]

    def _emit(self, node: fx.Node, step: Step) -> None:
        self.steps.append(step)
        self.value[node] = len(self.steps)

    def _module(self, node: fx.Node, module: nn.Module) -> None:
        inputs = self._inputs(node)
        if isinstance(module, nn.Conv2d):
            self._conv(node, module, inputs)
        elif isinstance(module, nn.BatchNorm2d):
            self._batch_norm(node, module, inputs[0])
        elif isinstance(module, nn.Identity | nn.Dropout):
            self.value[node] = inputs[0]
        elif type(module) in _ACTIVATION_TYPES:
            self._activation(node, module, inputs[0])
        elif isinstance(module, nn.MaxPool2d) and not module.ceil_mode and module.dilation == 1:
            step = {
                "kernel": module.kernel_size,
                "stride": module.stride,
                "padding": module.padding,
            }
            self._emit(node, {"op": "max_pool", "inputs": inputs, **step})
        else:
            raise CannotFoldError(f"no step for {type(module).__name__} at {node.target}")

    def _conv(self, node: fx.Node, conv: nn.Conv2d, inputs: list[int]) -> None:
        if conv.padding_mode != "zeros":
            raise CannotFoldError(f"padding mode {conv.padding_mode} at {node.target}")
        if type(conv) is nn.Conv2d:
            padding: Any = conv.padding if conv.padding == "same" else list(conv.padding)
        elif type(conv).__name__ == "Conv2dSame":  # the zoo's own class for TensorFlow's padding
            padding = "same"
        else:
            raise CannotFoldError(f"no step for {type(conv).__name__} at {node.target}")
        self._emit(
            node,
            {
                "op": "conv",
                "inputs": inputs,
                "stride": list(conv.stride),
                "padding": padding,
                "dilation": list(conv.dilation),
                "groups": conv.groups,
            },
        )
        number = len(self.steps)
        bias = conv.bias if conv.bias is not None else torch.zeros(conv.out_channels)
        self.tensors[f"weight_{number}"] = conv.weight.detach().clone()
        self.tensors[f"bias_{number}"] = bias.detach().clone()

    def _batch_norm(self, node: fx.Node, norm: nn.BatchNorm2d, value: int) -> None:
        step = self.steps[value - 1] if value else {"op": "image"}
        if step["op"] != "conv" or "activation" in step or self._shared(value, node):
            raise CannotFoldError(f"batch norm at {node.target} has no convolution of its own")
        if norm.running_mean is None or norm.running_var is None:
            raise CannotFoldError(f"batch norm at {node.target} has no running statistics")
        # y = (w x + b - mean) * scale + beta, in float64 so that folding costs no precision.
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        scale = scale * norm.weight.double() if norm.affine else scale
        shift = norm.bias.double() if norm.affine else torch.zeros_like(scale)
        weight, bias = self.tensors[f"weight_{value}"], self.tensors[f"bias_{value}"]
        self.tensors[f"weight_{value}"] = (weight.double() * scale[:, None, None, None]).float()
        folded = (bias.double() - norm.running_mean.double()) * scale + shift
        self.tensors[f"bias_{value}"] = folded.float()
        self.value[node] = value
        activation = getattr(norm, "act", None)  # the zoo's norm layers carry their activation
        if activation is not None and not isinstance(activation, nn.Identity):
            self._activation(node, activation, value)

    def _activation(self, node: fx.Node, module: nn.Module, value: int) -> None:
        kind = _ACTIVATION_TYPES.get(type(module))
        if kind is None:
            raise CannotFoldError(f"no step for {type(module).__name__} at {node.target}")
        step = self.steps[value - 1] if value else {"op": "image"}
        if (
            step["op"] in {"conv", "add"}
            and "activation" not in step
            and not self._shared(value, node)
        ):
            step["activation"] = kind
            self.value[node] = value
        else:
            self._emit(node, {"op": "activation", "inputs": [value], "activation": kind})

    def _shared(self, value: int, node: fx.Node) -> bool:
        """Whether anything besides `node` and what follows it reads this value."""
        return any(v == value and n is not node and len(n.users) > 1 for n, v in self.value.items())

    def _function(self, node: fx.Node) -> None:
        inputs = self._inputs(node)
        adds = (operator.add, operator.iadd, torch.add, "add", "add_")
        multiplies = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
        if node.target in adds and len(inputs) == 2:
            self._emit(node, {"op": "add", "inputs": inputs})
        elif node.target in multiplies and len(inputs) == 2:
            self._emit(node, {"op": "multiply", "inputs": inputs})
        elif node.target in ("mean", torch.mean) and _is_spatial_mean(node):
            self._emit(node, {"op": "spatial_mean", "inputs": inputs})
        else:
            raise CannotFoldError(f"no step for {node.target}")

    def finish(self) -> FoldedNetwork:
        return FoldedNetwork(self.steps, self.outputs, self.tensors)


def _is_spatial_mean(node: fx.Node) -> bool:
    axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    return tuple(cast("Sequence[int]", axes or ())) in {(2, 3), (-2, -1)} and bool(
        node.kwargs.get("keepdim", False)
    )
