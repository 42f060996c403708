"""Attention's registered operators: they follow PyTorch's rules and compile into one graph."""

from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from fastvec_kernels import attention
from fastvec_kernels.attention.op import _addressable, _attention, _attention_backward
from tests.kernels.attention_cases import KINDS, Case, kind_name, random_case

pytestmark = pytest.mark.usefixtures("only_kernels")


@pytest.mark.slow
@pytest.mark.parametrize("options", [KINDS[0], KINDS[-1]], ids=kind_name)
def test_the_ops_keep_pytorchs_rules(options: dict[str, Any], device: str) -> None:
    case = random_case([3, 40, 130], device, all_heads=(4, 1, 1), **options)
    inputs, batch = [case.q, case.k, case.v, case.options.get("sinks")], case.plan
    arguments = {"causal": False, "window": None, "softcap": None, "dropout_p": 0.0, "seed": 0, **case.options}
    arguments.pop("sinks", None)
    shared = (batch.host_lengths, batch.cu_seqlens, batch.sequence_ids)
    rule = [arguments[name] for name in ("scale", "causal", "window", "softcap", "dropout_p", "seed")]
    o, lse = _attention(*inputs, *shared, *rule)
    torch.library.opcheck(_attention_backward, (torch.randn_like(o), *inputs, o, lse, *shared, *rule))
    inputs = [x if x is None else x.requires_grad_() for x in inputs]
    torch.library.opcheck(_attention, (*inputs, *shared, *rule))


def test_offsets_in_a_sequence_never_pass_what_int32_holds() -> None:
    def addressable(token: int, head: int) -> bool:
        x = torch.empty_strided((64, 2, 16), (token, head, 1), device="meta")
        return _addressable(x, longest=64)[0] is x

    assert addressable(2**25 - 1, 16)
    assert not addressable(2**25, 16)
    assert addressable(16, 2**30 - 1024)
    assert not addressable(16, 2**30)


@pytest.mark.slow
@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("options", [KINDS[0], KINDS[-1]], ids=kind_name)
def test_attention_compiles_into_one_graph_for_every_batch(options: dict[str, Any], trains: bool, device: str) -> None:
    def layer(case: Case) -> torch.Tensor:
        return attention(case.q * 2, case.k, case.v, case.plan, **case.options)

    torch.compiler.reset()
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=graphs, dynamic=True)
    compiled_for = []
    for lengths in ([3, 40, 1, 1, 2], [70, 2, 3, 4, 5, 6], [5, 5, 6, 9, 20, 130, 1]):
        case = random_case(lengths, device, **options)
        case.q.requires_grad_(trains)
        expected, found = layer(case), compiled(case)
        assert torch.equal(found, expected)
        if trains:
            of_expected, of_found = (torch.autograd.grad(y.square()[:, 0].sum(), case.q)[0] for y in (expected, found))
            torch.testing.assert_close(of_found, of_expected)
        compiled_for.append(graphs.frame_count)
    assert compiled_for[0] == compiled_for[-1] > 0
