"""The embed stage: documents -> embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raycurate.core.errors import ConfigError
from raycurate.core.manifest import Manifest
from raycurate.encoders.embed_options import ALGORITHM_VERSION, EmbedConfig
from raycurate.stage import CORPUS, MODEL, Made, Result, Run, Stage

if TYPE_CHECKING:
    from raycurate.stages.embed.work import EmbedInputs


@dataclass(frozen=True)
class EmbedResult(Result):
    """A finished set of embeddings; `neighbours` is a look at them, where it was asked for."""

    neighbours: str = ""

    def summary(self) -> str:
        """The run in a few lines: documents, tokens, rejects by reason, rates, seconds by part."""
        counts, timings = self.manifest.counts, self.manifest.timings
        rejected = sum(self.manifest.rejects.values())
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(self.manifest.rejects.items()))
        parts = ", ".join(f"{name} {timings.get(name, 0.0):.1f}" for name in ("read", "tokenise", "encode", "write"))
        rows = counts["documents"] + rejected
        share = (rows - counts["resumed_rows"]) / rows  # what this attempt did; the rest was staged before it
        stream = max(timings["stream"], 0.001)  # 0 where all rows had been staged
        renamed, over_long = counts.get("renamed", 0), counts.get("over_long", 0)
        lines = [
            f"documents {counts['documents']:,}  tokens {counts['tokens']:,}  truncated {counts['truncated']:,}",
            f"rejected  {rejected:,}" + (f"  ({reasons})" if reasons else ""),
            *([f"over-long {over_long:,}  (only their first max_chars characters were read)"] if over_long else []),
            *([f"renamed   {renamed:,}  (their ids were taken; see _renamed/)"] if renamed else []),
        ]
        made = f"output {self.output}  ({len(self.manifest.files)} files)"
        if self.skipped:  # the rates are of another day
            return "\n".join([*lines, made]) + self.neighbours
        lines += [
            f"worker seconds in {parts}",
            f"wall {timings['wall']:.1f} s, {stream:.1f} s of it streaming"
            + (f"; {counts['resumed_rows']:,} rows were there from an earlier attempt" if share < 1 else ""),
            f"rate      {counts['documents'] * share / stream:,.1f} docs/s  "
            f"{counts['tokens'] * share / stream:,.0f} tokens/s  with the start of the actors",
        ]
        steady = timings["steady_rows_per_second"]
        if steady:
            lines.append(f"steady    {steady:,.1f} docs/s  {counts['tokens'] * steady / rows:,.0f} tokens/s")
        return "\n".join([*lines, made]) + self.neighbours


class Embed(Stage[EmbedConfig, "EmbedInputs"]):
    """Documents in; their vectors out. `rc.embed(dataset, ...)` embeds a Ray Data data set instead."""

    name = "embed"
    version = ALGORITHM_VERSION
    Config = EmbedConfig
    Result = EmbedResult
    folder = "embeddings"
    inputs = {"input": CORPUS, "model": MODEL}
    packages = ("ray", "torch", "transformers", "sentence-transformers", "pyarrow")
    encodes = True
    optional = False

    def open(self, config: EmbedConfig) -> EmbedInputs:
        from raycurate.stages.embed.work import open_inputs

        return open_inputs(config)

    def key_options(self, config: EmbedConfig, inputs: EmbedInputs) -> dict[str, Any]:
        return {**config.result_keys(), "contract": inputs.contract.fingerprint()}

    def work(self, config: EmbedConfig, inputs: EmbedInputs, run: Run) -> Made:
        from raycurate.stages.embed.work import embed

        return embed(config, inputs, run)

    def result(self, config: EmbedConfig, manifest: Manifest, *, skipped: bool) -> EmbedResult:
        from raycurate.stages.embed.preview import nearest_documents

        return EmbedResult(config.output, manifest, skipped, nearest_documents(config))

    def phrase(self, manifest: Manifest) -> str:
        return f"{manifest.counts['documents']:,} documents"

    def plan(self, config: EmbedConfig) -> str:
        from raycurate.stages.embed.work import describe, plan_run

        inputs = self.open(config)
        return "\n".join([*describe(plan_run(config, inputs), inputs), self.state_line(config, inputs)])

    def __call__(self, *places: Any, **options: Any) -> Any:
        """Of a Ray Data data set: the same with vectors (encoders/transform.py); of files: the stage."""
        named = places[0] if places else options.get("input", "")
        if isinstance(named, str | list):
            return super().__call__(*places, **options)
        if len(places) > 1:
            raise ConfigError(
                "a data set is returned with its vectors, and written nowhere",
                where="rc.embed",
                fix="Leave the output out and write what comes back (.write_parquet), or name a folder of documents",
            )
        from raycurate.encoders.transform import embed

        return embed(*places, **options)


STAGE = Embed()
