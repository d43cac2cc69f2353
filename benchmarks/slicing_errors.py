"""How far sliced networks are from the masked ones, family by family: the largest relative errors in float32 and in float64.

Every network is converted by PCS, trained for a step, given large shifts in its norms, and sliced under random masks in removable units:
from one entry left in each gate to none removed, with both ways of treating residual additions. Beside the errors stands what
the masked network itself rounds in float32 (its float32 outputs against its float64 ones), which no rearrangement can be expected to beat.

    python benchmarks/slicing_errors.py [--draws 20] [--families resnet18 vgg16] [--size 64]
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator

import torch
import torchvision
from torch import nn

import chansurg
from chansurg.surgery.editing.applying import perform
from chansurg.surgery.gating import gates
from chansurg.surgery.slicing.couplings import RESIDUALS, Couplings
from chansurg.surgery.slicing.cutting import cut
from chansurg.surgery.slicing.proof import prove
from chansurg.surgery.survey import survey

FAMILIES = (
    "cifar/resnet20 resnet18 resnet34 resnet50 resnext50_32x4d vgg16 vgg16_bn mobilenet_v2 mobilenet_v3_small densenet121 efficientnet_b0 "
    "regnet_x_400mf regnet_y_400mf convnext_tiny googlenet shufflenet_v2_x0_5 mnasnet0_5 squeezenet1_1 swin_t vit_b_16"
).split()
SIZES = {"cifar/resnet20": 32, "vit_b_16": 224, "googlenet": 96}


def built(name: str) -> nn.Module:
    """A network with fresh weights, none of them zero: some heads and scales begin so, and would hide every error."""
    torch.manual_seed(0)
    if name.startswith("cifar/"):
        network = chansurg.load(name)
    else:
        network = torchvision.models.get_model(name, weights=None, **({"init_weights": True} if name == "googlenet" else {}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.abs().max() < 1e-3:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network.eval()


def prepared(network: nn.Module, size: tuple[int, ...]) -> nn.Module:
    """The network with gates, after a step of training, and with large shifts in its norms."""
    gated = chansurg.convert(network, "pcs", input_size=size)
    generator = torch.Generator().manual_seed(2)
    gated.train()
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01)
    outputs = gated(torch.randn(8, *size, generator=generator))
    logits = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
    nn.functional.cross_entropy(logits, torch.arange(8) % logits.shape[1]).backward()
    nn.utils.clip_grad_norm_(gated.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        for module in gated.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                module.bias.add_(torch.randn(module.bias.shape, generator=generator))
        for gate in gates(gated).values():
            gate.running_salience.copy_(torch.rand(gate.entries, generator=generator))
    return gated.eval()


def mask(network: nn.Module, share: float, generator: torch.Generator) -> None:
    """Let every gate go of about this share of its entries, and keep at least one."""
    for gate in gates(network).values():
        kept = torch.rand(gate.entries, generator=generator) >= share
        kept[int(torch.randint(gate.entries, (1,), generator=generator))] = True
        gate.mask.copy_(kept)


def shares(draws: int) -> Iterator[float]:
    """Of each draw how much goes: all but one entry, then nothing, then half, then anything between."""
    generator = torch.Generator().manual_seed(3)
    for draw in range(draws):
        yield (1.0, 0.0, 0.5)[draw] if draw < 3 else float(torch.rand((), generator=generator))


def slicings(network: nn.Module, size: tuple[int, ...], draws: int) -> Iterator[nn.Module]:
    """Mask a gated network ``draws`` times, and give what slicing leaves of it, with residual additions treated in turn.

    Costs that are told without slicing are compared with those that are counted.
    """
    generator = torch.Generator().manual_seed(4)
    couplings = Couplings(survey(network, size))
    for draw, share in enumerate(shares(draws)):
        mask(network, share, generator)
        residual = RESIDUALS[draw % len(RESIDUALS)]
        made = cut(couplings, couplings.widths(residual=residual), couplings.masked(None))
        sliced = copy.deepcopy(network)
        perform(sliced, made.edits, made.signatures, seed=0)
        cost, counted = couplings.cost(residual=residual), chansurg.count(sliced, size)
        if (cost.params, cost.macs, cost.memory_access) != (counted.params, counted.macs, counted.memory_access):
            raise SystemExit(f"the cost told without slicing is {cost}, and the one counted {counted}")
        yield sliced


def main() -> None:
    """Slice every family and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--families", nargs="*", default=FAMILIES)
    parser.add_argument("--size", type=int, default=64)
    arguments = parser.parse_args()
    print(f"{'family':20s} {'gates':>5s} {'draws':>5s} {'float32':>9s} {'rounding':>9s} {'float64':>9s} {'seconds':>8s}")
    for name in arguments.families:
        started = time.perf_counter()
        size = (3, SIZES.get(name, arguments.size), SIZES.get(name, arguments.size))
        network = prepared(built(name), size)
        found = [prove(network, sliced, network, size, seed=draw) for draw, sliced in enumerate(slicings(network, size, arguments.draws))]
        single, own, double = (
            max(getattr(proof, figure) for proof in found) for figure in ("max_rel_error", "rounding", "max_rel_error_float64")
        )
        seconds = time.perf_counter() - started
        print(f"{name:20s} {len(gates(network)):5d} {len(found):5d} {single:9.1e} {own:9.1e} {double:9.1e} {seconds:8.1f}", flush=True)


if __name__ == "__main__":
    main()
