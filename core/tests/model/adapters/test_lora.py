"""Low-rank adapters: state, files and the untrained model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from torch import Tensor, nn

from st import StError
from st.errors import OutputUnwritable
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.model.files.adapter_file import write_adapter_file, write_layout
from st.model.files.formats import AdapterFormat, LoraShape, comfyui_format, shape_of
from st.model.inside.blocks import BlockStack
from st.model.inside.recompute import Recompute, RecomputeOptions
from st.testing.subjects.tiny import TinyFamily

TARGETS = ("attn.to_q", "attn.to_k", "attn.to_out.0")
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {"alpha": 6},
    "rslora": {"use_rslora": True, "alpha": 3},
    "dora": {"use_dora": True},
    "gaussian": {"init": "gaussian", "dropout": 0.1},
    "orthogonal": {"init": "orthogonal"},
    "pissa": {"init": "pissa", "alpha": 2},
    "pissa_niter": {"init": "pissa_niter_4"},
    "olora": {"init": "olora"},
    "bf16": {"dtype": "bf16"},
    "patterns": {"rank_pattern": {"to_k": 2}, "alpha_pattern": {"transformer_blocks.1.attn.to_q": 9}},
}
CHANGE_BASE = ("pissa", "pissa_niter", "olora")
FAMILY = TinyFamily(TinyFamily.Options())


def variant(name: str) -> LoraAdapter:
    return LoraAdapter(LoraOptions(**{"rank": 4, **VARIANTS[name]}))


def train(case: Any, adapter: LoraAdapter, steps: int = 2) -> None:
    """Attach and take steps that are large enough to see."""
    torch.manual_seed(0)
    groups = adapter.attach(case.denoiser, TARGETS)
    optimizer = torch.optim.SGD(groups, lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        case.denoiser(**case.arguments, return_dict=False)[0].square().mean().backward()
        optimizer.step()
    case.denoiser.eval()


def predict(case: Any) -> Tensor:
    with torch.no_grad():
        prediction: Tensor = case.denoiser(**case.arguments, return_dict=False)[0]
    return prediction


@pytest.mark.parametrize("name", list(VARIANTS))
def test_a_fresh_model_continues_exactly_from_a_saved_state(make_case: Callable[[str], Any], name: str) -> None:
    trained, fresh = make_case("sd3"), make_case("sd3")
    untrained = predict(fresh)
    adapter, again = variant(name), variant(name)
    train(trained, adapter)

    torch.manual_seed(99)
    again.attach(fresh.denoiser.eval(), TARGETS)
    again.load(fresh.denoiser, {key: tensor.clone() for key, tensor in adapter.state(trained.denoiser).items()})

    assert torch.equal(predict(fresh), predict(trained))
    assert not torch.allclose(predict(trained), untrained, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "bf16"])
def test_the_file_gives_diffusers_the_same_prediction(
    make_case: Callable[[str], Any], tmp_path: Path, name: str
) -> None:
    trained, plain = make_case("sd3"), make_case("sd3")
    adapter = variant(name)
    train(trained, adapter)

    file = adapter.export(FAMILY, trained.denoiser, tmp_path, {"note": "hello"})
    plain.denoiser.eval().load_lora_adapter(str(tmp_path), weight_name=file.name, prefix="transformer")

    # A part of the base in the update, or a scale inside of B, changes the last digits of sums of float32.
    torch.testing.assert_close(predict(plain), predict(trained), rtol=0, atol=5e-6)
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["note"] == "hello"


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_other_denoisers_load_in_diffusers_too(make_case: Callable[[str], Any], tmp_path: Path, name: str) -> None:
    trained, plain = make_case(name), make_case(name)
    adapter = variant("patterns")
    targets = {"flux": ("attn.to_q", "attn.to_k"), "wan": ("attn1.to_q", "attn1.to_k", "ffn.net.2")}[name]
    adapter.options = adapter.options.model_copy(update={"alpha_pattern": {"*blocks.1.*.to_q": 9.0}})
    torch.manual_seed(0)
    groups = adapter.attach(trained.denoiser, targets)
    with torch.no_grad():
        for parameter in groups[0]["params"]:
            parameter.normal_(std=0.2)

    file = adapter.export(FAMILY, trained.denoiser.eval(), tmp_path, {})
    plain.denoiser.eval().load_lora_adapter(str(tmp_path), weight_name=file.name, prefix="transformer")

    torch.testing.assert_close(predict(plain), predict(trained), rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", list(VARIANTS))
def test_a_new_adapter_changes_nothing(make_case: Callable[[str], Any], name: str) -> None:
    case = make_case("sd3")
    expected = predict(case)
    case.denoiser.eval()

    variant(name).attach(case.denoiser, TARGETS)

    # B A is zero, or gives back what the base lost, to the last digits of float32.
    tolerance = 5e-6 if name in (*CHANGE_BASE, "dora", "orthogonal") else 0
    torch.testing.assert_close(predict(case), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["lora", "dora", "pissa"])
def test_disabled_is_the_untrained_model_and_ends(make_case: Callable[[str], Any], name: str) -> None:
    case, adapter = make_case("sd3"), variant(name)
    untrained = predict(case)
    train(case, adapter)
    trained = predict(case)

    with adapter.disabled(case.denoiser):
        frozen = predict(case)

    tolerance = 5e-6 if name in CHANGE_BASE else 0
    torch.testing.assert_close(frozen, untrained, rtol=0, atol=tolerance)
    assert torch.equal(predict(case), trained)
    learning = [name for name, parameter in case.denoiser.named_parameters() if parameter.requires_grad]
    assert len(learning) == len([key for key in adapter.state(case.denoiser) if not key.endswith(".start")])


@pytest.mark.parametrize("name", ["lora", "pissa"])
def test_asking_the_untrained_model_does_not_disturb_a_waiting_graph(
    make_case: Callable[[str], Any], name: str
) -> None:
    case, adapter = make_case("sd3"), variant(name)
    groups = adapter.attach(case.denoiser, TARGETS)
    case.run()
    expected = [parameter.grad.clone() for parameter in groups[0]["params"]]
    case.denoiser.zero_grad()

    prediction = case.denoiser(**case.arguments, return_dict=False)[0]
    with adapter.disabled(case.denoiser), torch.no_grad():
        case.denoiser(**case.arguments, return_dict=False)
    (prediction.square().mean() + prediction.mean()).backward()

    assert all(
        torch.equal(parameter.grad, gradient) for parameter, gradient in zip(groups[0]["params"], expected, strict=True)
    )


def test_only_the_adapter_learns(make_case: Callable[[str], Any]) -> None:
    case, adapter = make_case("sd3"), variant("dora")
    case.denoiser.requires_grad_(True)

    groups = adapter.attach(case.denoiser, TARGETS)

    learning = {id(p) for p in case.denoiser.parameters() if p.requires_grad}
    assert learning == {id(p) for p in groups[0]["params"]} == {id(p) for p in adapter.state(case.denoiser).values()}
    assert adapter.note == "LoRA of rank 4 on 12 layers: 1,728 weights learn"


def test_trained_weights_are_float32_over_a_bfloat16_model(make_case: Callable[[str], Any]) -> None:
    case, adapter = make_case("sd3"), variant("lora")
    case.denoiser.to(torch.bfloat16)

    adapter.attach(case.denoiser, TARGETS)

    assert {p.dtype for p in adapter.state(case.denoiser).values()} == {torch.float32}


def test_names_are_the_denoisers_own(make_case: Callable[[str], Any]) -> None:
    case, adapter = make_case("sd3"), variant("lora")

    adapter.attach(case.denoiser, ("transformer_blocks.1.attn.to_q",))

    assert list(adapter.state(case.denoiser)) == [
        "transformer_blocks.1.attn.to_q.lora_A.weight",
        "transformer_blocks.1.attn.to_q.lora_B.weight",
    ]


def test_a_module_without_peft_support_is_adapted_too(tmp_path: Path) -> None:
    family = TinyFamily.tiny(tmp_path)
    denoiser = family.load_denoiser(torch.device("cpu"), torch.float32)

    groups = variant("lora").attach(denoiser, family.adapter_targets())

    assert len(groups[0]["params"]) == 2 * 4 * 3


def test_recompute_of_adapted_blocks_is_exact(make_case: Callable[[str], Any]) -> None:
    case = make_case("sd3")
    variant("gaussian").attach(case.denoiser, TARGETS)
    torch.manual_seed(1)
    _, expected = case.run()

    torch.manual_seed(1)
    with BlockStack(case.denoiser, case.groups, [Recompute(RecomputeOptions(every=1))]):
        _, actual = case.run()

    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_training_goes_on_from_a_file(make_case: Callable[[str], Any], tmp_path: Path) -> None:
    trained, fresh = make_case("sd3"), make_case("sd3")
    adapter = variant("patterns")
    train(trained, adapter)
    file = adapter.export(FAMILY, trained.denoiser, tmp_path, {})

    again = LoraAdapter(LoraOptions(start=str(file)))
    again.attach(fresh.denoiser.eval(), ("nothing",))

    assert torch.equal(predict(fresh), predict(trained))
    assert again.note.startswith("LoRA of rank 2-4 on 12 layers")


def test_a_file_of_another_model_is_refused(make_case: Callable[[str], Any], tmp_path: Path) -> None:
    trained, other = make_case("sd3"), make_case("wan")
    adapter = variant("lora")
    train(trained, adapter)
    file = adapter.export(FAMILY, trained.denoiser, tmp_path, {})

    with pytest.raises(StError, match="fits no WanTransformer3DModel"):
        LoraAdapter(LoraOptions(start=str(file))).attach(other.denoiser, TARGETS)


def test_layers_that_a_file_leaves_out_are_counted(make_case: Callable[[str], Any], tmp_path: Path) -> None:
    trained, fresh = make_case("sd3"), make_case("sd3")
    adapter = variant("lora")
    train(trained, adapter)
    file = adapter.export(FAMILY, trained.denoiser, tmp_path, {})

    again = LoraAdapter(LoraOptions(start=str(file)))
    again.attach(fresh.denoiser, (*TARGETS, "attn.to_v"))

    assert again.note.endswith(f"; 4 other layers that this run would train are not in {str(file)!r}")


def test_the_familys_layouts_are_read(make_case: Callable[[str], Any], tmp_path: Path) -> None:
    trained, fresh = make_case("sd3"), make_case("sd3")
    adapter, layout = variant("patterns"), comfyui_format("theirs", [("transformer_blocks", "layers")])
    train(trained, adapter)
    write_layout(tmp_path / "a.safetensors", layout, adapter.portable(trained.denoiser), {})

    again = LoraAdapter(LoraOptions(start=str(tmp_path / "a.safetensors")))
    again.attach(fresh.denoiser.eval(), TARGETS, {"theirs": layout})

    assert torch.equal(predict(fresh), predict(trained))


@pytest.mark.parametrize(
    ("part", "shape", "message"),
    [
        ("lora_A.weight", (4, 17), r"to_q.lora_A.weight' has shape \(4, 17\), expected \(4, 16\)"),
        ("lora_B.weight", (16, 5), r"to_q.lora_B.weight' has shape \(16, 5\), expected \(outputs, 4\)"),
        ("lora_B.weight", (15, 4), r"to_q.lora_B.weight' has shape \(15, 4\), expected \(16, 4\)"),
    ],
)
def test_a_tensor_of_another_shape_is_named(
    make_case: Callable[[str], Any], tmp_path: Path, part: str, shape: tuple[int, ...], message: str
) -> None:
    name = "transformer.transformer_blocks.0.attn.to_q"
    tensors = {f"{name}.lora_A.weight": torch.zeros(4, 16), f"{name}.lora_B.weight": torch.zeros(16, 4)}
    write_adapter_file(tmp_path / "a.safetensors", {**tensors, f"{name}.{part}": torch.zeros(shape)}, {})

    with pytest.raises(StError, match=message):
        LoraAdapter(LoraOptions(start=str(tmp_path / "a.safetensors"))).attach(make_case("sd3").denoiser, TARGETS)


class Lossy(AdapterFormat):
    """Forgets the scale."""

    def to_file(self, state: Mapping[str, Tensor], shape: LoraShape) -> tuple[dict[str, Tensor], dict[str, str]]:
        return dict(state), {}

    def from_file(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> tuple[dict[str, Tensor], LoraShape]:
        return dict(tensors), shape_of(tensors, {})


def test_a_file_that_does_not_give_the_adapter_back_is_not_left(
    make_case: Callable[[str], Any], tmp_path: Path
) -> None:
    trained, adapter = make_case("sd3"), variant("lora")
    train(trained, adapter)

    with pytest.raises(OutputUnwritable, match="does not come back as it was"):
        write_layout(tmp_path / "a.safetensors", Lossy(), adapter.portable(trained.denoiser), {})

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "8 tensors are missing, such as 'transformer_blocks.0"),
        ({"x.lora_A.weight": torch.zeros(1)}, "1 tensors belong nowhere, such as 'x.lora_A.weight'"),
    ],
)
def test_a_foreign_state_is_refused(make_case: Callable[[str], Any], state: dict[str, Tensor], message: str) -> None:
    case, adapter = make_case("sd3"), variant("lora")
    adapter.attach(case.denoiser, ("attn.to_q",))

    with pytest.raises(StError, match=message):
        adapter.load(case.denoiser, state)


def test_another_rank_is_refused_before_anything_changes(make_case: Callable[[str], Any]) -> None:
    case, wide, narrow = make_case("sd3"), make_case("sd3"), variant("lora")
    narrow.attach(case.denoiser, TARGETS)
    wider = LoraAdapter(LoraOptions(rank=8))
    wider.attach(wide.denoiser, TARGETS)
    before = {name: tensor.clone() for name, tensor in narrow.state(case.denoiser).items()}

    with pytest.raises(StError, match=r"has shape \(8, 16\) in the stored state, \(4, 16\) in the adapter"):
        narrow.load(case.denoiser, wider.state(wide.denoiser))

    assert all(torch.equal(tensor, before[name]) for name, tensor in narrow.state(case.denoiser).items())


def test_a_target_that_matches_nothing_names_what_is_close(make_case: Callable[[str], Any]) -> None:
    case = make_case("sd3")

    with pytest.raises(StError, match="'to_qq' matches no layer") as raised:
        variant("lora").attach(case.denoiser, ("to_k", "to_qq"))

    assert "'to_q'" in raised.value.fix


@pytest.mark.parametrize("name", ["pissa", "dora"])
def test_quantized_weights_are_not_taken_apart(make_case: Callable[[str], Any], name: str) -> None:
    case = make_case("sd3")
    for module in case.denoiser.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(module.weight.to(torch.int8), requires_grad=False)

    with pytest.raises(StError, match=r"cannot take apart|needs weights that are not quantized"):
        variant(name).attach(case.denoiser, TARGETS)


def test_convolutions_are_adapted_and_not_taken_apart() -> None:
    convolutions = nn.Sequential(nn.Conv2d(4, 4, 3))

    variant("lora").attach(convolutions, ("0",))

    with pytest.raises(StError, match="'pissa' cannot take apart the weights of '0', a Conv2d"):
        variant("pissa").attach(nn.Sequential(nn.Conv2d(4, 4, 3)), ("0",))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": "a.safetensors", "rank": 8}, "leave out rank"),
        ({"use_dora": True, "init": "pissa"}, "use_dora does not go with"),
        ({"init": "svd"}, "init"),
        ({"init": "orthogonal", "rank_pattern": {"to_q": 3}}, "needs even ranks"),
    ],
)
def test_settings_that_contradict_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LoraOptions(**settings)


def test_an_unknown_format_is_found_beforehand() -> None:
    (problem,) = LoraAdapter(LoraOptions(format=("diffusers", "kohya"))).problems(FAMILY)

    assert problem.where == "adapter.format"
    assert problem.what == "adapter.format = 'kohya': this family writes diffusers"


@pytest.mark.parametrize(
    ("name", "message"),
    [("gone.safetensors", "there is no such file"), ("a.pt", "is a pickle, which can run any program")],
)
def test_a_start_that_cannot_be_read_is_found_beforehand(name: str, message: str) -> None:
    (problem,) = LoraAdapter(LoraOptions(start=name)).problems(FAMILY)

    assert problem.where == "adapter.start"
    assert message in problem.what
