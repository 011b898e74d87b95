"""The part of `nsn-edge run` that continues prompts: its options, the stream on the terminal, and the result."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from nsn_edge.cli.common import emit

if TYPE_CHECKING:
    from nsn_edge.runtimes.generation import Generation, GenerationConfig
    from nsn_edge.runtimes.session import EdgeSession

_OPTIONS = (
    click.option("--prompt", "prompts", multiple=True, help="Continue this text with a decoder. Repeat it."),
    click.option("--max-new-tokens", default=128, show_default=True, type=int, help="With --prompt: tokens to add."),
    click.option(
        "--temperature", default=0.0, show_default=True, type=float, help="0 takes the likeliest token each time."
    ),
    click.option("--top-k-sampling", type=int, help="Draw among this many likeliest tokens."),
    click.option("--top-p", type=float, help="Draw among the fewest tokens that hold this much probability."),
    click.option("--seed", default=0, show_default=True, type=int, help="Of chance."),
    click.option("--stop", multiple=True, help="End before this text. Repeat it."),
)


@dataclass(frozen=True)
class Prompting:
    """What to continue, and how, as it was typed."""

    prompts: tuple[str, ...]
    """None for a run of another kind."""
    settings: dict[str, Any]
    """Of `GenerationConfig`."""

    def config(self) -> GenerationConfig:
        """The settings, checked.

        Raises:
            UsageError: one makes no sense.
        """
        from nsn_edge.runtimes.generation import GenerationConfig

        return GenerationConfig(**self.settings)


def prompt_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of prompts to a verb; it gets them as one keyword, `prompting`."""

    @functools.wraps(function)
    def gathered(
        prompts: tuple[str, ...],
        max_new_tokens: int,
        temperature: float,
        top_k_sampling: int | None,
        top_p: float | None,
        seed: int,
        stop: tuple[str, ...],
        **others: Any,
    ) -> None:
        settings = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_k": top_k_sampling,
            "top_p": top_p,
            "seed": seed,
            "stop": stop,
        }
        function(prompting=Prompting(prompts, settings), **others)

    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(_OPTIONS), gathered)


def continue_prompts(session: EdgeSession, prompting: Prompting, as_json: bool) -> None:
    """Continue one prompt after the other: on the terminal as the text comes, for programs a document each."""
    from nsn_edge.runtimes.generation import Generator

    config = prompting.config()
    generator = Generator(session)
    streams = [generator.stream([prompt], config) for prompt in prompting.prompts]  # all are checked first
    for prompt, stream in zip(prompting.prompts, streams, strict=True):
        if not as_json:
            click.echo(prompt, nl=False)
        try:
            for piece in stream:
                if not as_json and piece.text:
                    click.echo(piece.text, nl=False)
        finally:
            if not as_json:
                click.echo()  # an interrupt leaves what was printed, and the message a line of its own
        (generation,) = stream.generations

        def render(_: Console, generation: Generation = generation) -> None:
            click.echo(_summary(generation), err=True)

        emit({**generation.to_json(), "prompt": prompt}, render, as_json)


def _summary(generation: Generation) -> str:
    ranks = sorted(set(generation.ranks))
    spread = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    return (
        f"{spread}: {len(generation.prompt)} tokens read in {generation.prefill_ms:.1f} ms"
        f"{_rate(generation.prefill_tokens_per_s)}, {len(generation.tokens)} written"
        f"{_rate(generation.decode_tokens_per_s)}, ended by {generation.finish_reason}"
    )


def _rate(per_s: float | None) -> str:
    return "" if per_s is None else f" ({per_s:.0f}/s)"
