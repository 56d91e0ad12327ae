"""Plans read from a model's own forward: what they find, what they refuse, and that a split by them is exact."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from stagemesh.services.stage.compare import Difference, compare_generation
from stagemesh.services.stage.partition.load import load_partition
from stagemesh.services.stage.partition.loop import NotUnderstoodError, read_loop
from stagemesh.services.stage.partition.plans import Plan, plan_of
from torch import nn
from transformers import AutoModelForCausalLM

from stagemesh import checkpoint as checkpoints
from stagemesh.errors import CheckpointError
from tests.parity import build, causal_more

PROMPTS = [[5, 9, 3, 77, 20, 31, 8, 64, 12, 90, 2], [7], [40, 41, 42, 43]]


def _plan(name: str, settings: dict[str, Any] | None = None) -> Plan:
    given = causal_more.SETTINGS.get(name, {}) if settings is None else settings
    config = build.shrunken(causal_more.model_type(name), given)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return plan_of(config, model.base_model)


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("gpt2", Plan("h", ("wte",), ("ln_f",), ("wpe",))),
        ("bloom", Plan("h", ("word_embeddings", "word_embeddings_layernorm"), ("ln_f",))),
        ("falcon", Plan("h", ("word_embeddings",), ("ln_f",))),
        ("mpt", Plan("blocks", ("wte",), ("norm_f",))),
        ("mamba", Plan("layers", ("embeddings",), ("norm_f",))),
        # One norm is used before the layers and after them.
        ("nanochat", Plan("layers", ("embed_tokens",), ())),
        (
            "opt-projected",
            Plan(
                "decoder.layers",
                ("decoder.embed_tokens", "decoder.project_in"),
                ("decoder.project_out",),
                ("decoder.embed_positions",),
            ),
        ),
    ],
)
def test_plan(name: str, plan: Plan) -> None:
    found = _plan(name)
    assert (found.layers, set(found.before), set(found.after), found.nothing) == (
        plan.layers,
        set(plan.before),
        set(plan.after),
        plan.nothing,
    )


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("rwkv", {}, "no cache of the kind"),
        ("openai-gpt", {}, "no cache of the kind"),
        ("recurrent_gemma", {}, "one sequence's state"),
        ("bert", {"is_decoder": True}, "outside of the module with its layers"),
        ("xlm", {}, "4 lists of 6 layers"),
        # Layers get a second value from the layer before.
        ("inkling2_text", {}, "more with the hidden state"),
    ],
)
def test_families_that_cannot_be_cut_are_refused(name: str, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason) as refused:
        _plan(name, settings)
    assert name in refused.value.message


# ---- forwards, good and bad ----


class _Good(nn.Module):
    def forward(self, input_ids: Any = None, inputs_embeds: Any = None, past_key_values: Any = None) -> Any:
        if inputs_embeds is None:
            inputs_embeds = self.embed(input_ids)
        mask = create_mask(inputs_embeds, past_key_values)  # type: ignore[name-defined]  # noqa: F821
        positions = self.turn(inputs_embeds)
        hidden = self.norm_in(inputs_embeds)
        everything: tuple[Any, ...] = ()
        for layer in self.layers:
            outputs = layer(hidden, mask, positions)
            hidden = outputs[0]
        hidden = self.norm_out(hidden)
        return hidden, everything


class _Skip(nn.Module):
    def forward(self, inputs_embeds: Any = None) -> Any:
        hidden = inputs_embeds
        for layer in self.layers:
            hidden = layer(hidden, inputs_embeds)
        return hidden


class _Carried(nn.Module):
    def forward(self, inputs_embeds: Any = None) -> Any:
        hidden, before = inputs_embeds, None
        for layer in self.layers:
            hidden, before = layer(hidden, before)
        return hidden


class _Scaled(nn.Module):
    def forward(self, inputs_embeds: Any = None) -> Any:
        hidden = inputs_embeds
        for layer in self.layers:
            hidden = layer(hidden)
            hidden = hidden / 2
        return hidden


class _Summed(nn.Module):
    def forward(self, inputs_embeds: Any = None) -> Any:
        hidden = total = inputs_embeds
        for layer in self.layers:
            hidden = layer(hidden)
            total = total + hidden
        hidden = hidden + total
        return hidden


class _Residual(nn.Module):
    def forward(self, inputs_embeds: Any = None) -> Any:
        hidden = inputs_embeds
        for layer in self.layers:
            hidden = layer(hidden)
        hidden = hidden + inputs_embeds
        return hidden


class _Remembers(nn.Module):
    def forward(self, inputs_embeds: Any = None) -> Any:
        hidden = inputs_embeds
        for layer in self.layers:
            hidden = layer(hidden)
            self.last = hidden
        return hidden


class _Twice(nn.Module):
    def forward(self, inputs_embeds: Any = None) -> Any:
        hidden = inputs_embeds
        for layer in self.layers:
            hidden = layer(layer(hidden))
        return hidden


class _TwoLoops(nn.Module):
    def forward(self, inputs_embeds: Any = None) -> Any:
        hidden = inputs_embeds
        for layer in self.layers:
            hidden = layer(hidden)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


def test_a_plain_loop_is_read() -> None:
    loop = read_loop(_Good.forward, "layers", frozenset({"turn"}))
    assert loop.before == {"embed", "turn", "norm_in"}
    assert loop.after == {"norm_out"}


def test_positions_made_by_an_unknown_module_are_refused() -> None:
    with pytest.raises(NotUnderstoodError, match="'positions', made from the embeddings"):
        read_loop(_Good.forward, "layers", frozenset())


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (_Skip.forward, "'inputs_embeds', made from the embeddings"),
        (_Carried.forward, "pass on 'before'"),
        (_Scaled.forward, "more with the hidden state"),
        (_Summed.forward, "more than the last hidden state"),
        (_Residual.forward, "more than the last hidden state"),
        (_Remembers.forward, "keeps something on the model"),
        (_Twice.forward, "each layer once"),
        (_TwoLoops.forward, "no single loop"),
    ],
)
def test_what_a_cut_would_break_is_refused(forward: Callable[..., Any], reason: str) -> None:
    with pytest.raises(NotUnderstoodError, match=reason):
        read_loop(forward, "layers", frozenset())


# ---- split against whole ----


def _split(folder: Path, chunk: int, spoil: Callable[[list[Any]], None] | None = None) -> Difference:
    build.quiet()
    found = checkpoints.inspect(folder)
    parts = [
        load_partition(folder, found, task="generate", first=first, end=first + 2, dtype="F32")
        for first in (0, 2, 4)
    ]
    if spoil:
        spoil(parts)
    return compare_generation(folder, parts, PROMPTS, 4, chunk)


def _same(found: Difference) -> bool:
    return found.tokens_equal == found.tokens_compared and found.max_abs_error <= 1e-4 * max(1, found.scale)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("plans") / name
            causal_more.make(name, made[name])
        return made[name]

    return folder


@pytest.mark.parametrize("chunk", [0, 5])
@pytest.mark.parametrize(
    "name", ["gpt2", "opt-projected", "bloom", "falcon", "gpt_neo", "mamba", "bamba", "ctrl"]
)
def test_split_is_exact(folder_of: Callable[[str], Path], name: str, chunk: int) -> None:
    assert _same(_split(folder_of(name), chunk))


def _skip_a_layer(parts: list[Any]) -> None:
    def skip(_: nn.Module, given: tuple[Any, ...], output: Any) -> Any:
        return (given[0], *output[1:]) if isinstance(output, tuple) else given[0]

    parts[1]._skeleton.layers[0].register_forward_hook(skip)


def _lose_state(parts: list[Any]) -> None:
    family, forward = parts[1]._family, parts[1].forward

    def without(batch: Any) -> Any:
        for segment in batch.segments:
            segment.kv.own = family.cache(2, 4)
        return forward(batch)

    parts[1].forward = without


def _position_zero(parts: list[Any]) -> None:
    table = parts[0]._base.wpe
    table.register_forward_pre_hook(lambda _, given: (given[0] * 0,))


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("gpt2", _skip_a_layer),
        ("gpt2", _lose_state),
        ("gpt2", _position_zero),
        ("bloom", _skip_a_layer),
        ("mamba", _lose_state),
        ("bamba", _lose_state),
    ],
)
def test_the_comparison_sees(
    folder_of: Callable[[str], Path], name: str, spoil: Callable[[list[Any]], None]
) -> None:
    assert not _same(_split(folder_of(name), 0, spoil))


def test_later_partitions_hold_no_table_of_positions(folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("gpt2")
    found = checkpoints.inspect(folder)
    part = load_partition(folder, found, task="generate", first=2, end=4, dtype="F32")
    names = [name for name, _ in part._base.named_parameters()]  # type: ignore[attr-defined]
    assert names
    assert all(name.startswith("h.") for name in names)


def test_transformers_still_has_these_families() -> None:
    known = set(transformers.CONFIG_MAPPING)
    assert {causal_more.model_type(name) for name in causal_more.MORE} <= known
