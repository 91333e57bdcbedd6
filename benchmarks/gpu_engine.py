"""The cases of benchmarks/gpu.py that drive the engine in this process: decoding, prompts, chats, and mixed load.

One model is loaded once for all of them; after a case that failed it is loaded anew. `variants` are the cases that
need a model that is loaded otherwise.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from statistics import mean, median

from gpu_bench import Bench, MissingCase, measure_copy, measure_matmul, measure_products, warm_up
from gpu_plan import SIGMA, lengths
from gpu_session import GREEDY, SAMPLED, Limits, Session, Trace
from random_model import SHAPES

from engine.sampling_params import SamplingParams

USAGE_EVERY = 8
"""Steps between two looks at the KV cache: a look costs the host time that the step is measured by."""


class EngineCases:
    """The cases by name, and the model that they share."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._sizes = bench.sizes
        self._session: Session | None = None
        self._waste: list[float] = []
        warm_up(bench)

    def close(self) -> None:
        """Forgets the model; the next case loads it anew."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def table(self) -> dict[str, Callable[[], None]]:
        """What to call for each case."""
        middle = partial(self.decode, batch=1, center=self._sizes.middle_context)
        table: dict[str, Callable[[], None]] = {
            "ceiling/copy": partial(measure_copy, self._bench),
            "ceiling/matmul": partial(measure_matmul, self._bench),
            "ceiling/products": partial(
                measure_products, self._bench, SHAPES[self._bench.shape], max(16, 2048 // self._sizes.ttft_scale)
            ),
            "decode/bf16/b1": partial(middle, "decode/bf16/b1"),
            "decode/bf16/b1/ctx4096": partial(
                self.decode, "decode/bf16/b1/ctx4096", batch=1, center=self._sizes.long_context
            ),
            "decode/bf16/b1/sampled": partial(middle, "decode/bf16/b1/sampled", params=SAMPLED),
            "decode/bf16/b64/sampled": partial(self.decode, "decode/bf16/b64/sampled", batch=64, params=SAMPLED),
            "step/host_ms": partial(self.host, "step/host_ms", 1),
            "step/host_ms/b256": partial(self.host, "step/host_ms/b256", 256),
            "prefill/bf16": self.prefill,
            "turns/ttft_ratio_10_to_2": self.turns,
            "itl/bf16/p99_ms": self.inter_token,
            "mixed/bf16": self.mixed,
            "kv/waste_share": self.waste,
            "kv/used_share_under_load": self.small_pool,
            "decode/bf16/b1/no_pdl": partial(self.variant, "decode/bf16/b1/no_pdl", 1, use_pdl=False),
            "decode/bf16/b64/no_graphs": partial(self.variant, "decode/bf16/b64/no_graphs", 64, use_graphs=False),
        }
        for kv in ("int8", "fp8"):
            long, many = f"decode/bf16/b1/ctx4096/kv_{kv}", f"decode/bf16/b64/kv_{kv}"
            table[long] = partial(self.variant, long, 1, center=self._sizes.long_context, kv_cache_type=kv)
            table[many] = partial(self.variant, many, 64, kv_cache_type=kv)
        for batch in (2, 4, 8, 16, 32, 64, 128, 256):
            table[f"decode/bf16/b{batch}"] = partial(self.decode, f"decode/bf16/b{batch}", batch=batch)
        for length in (128, 512, 2048, 8192):
            table[f"ttft/bf16/{length}"] = partial(self.first_token, length)
        return table

    @property
    def session(self) -> Session:
        if self._session is None:
            self._session = Session(self._bench.model, self._bench.device)
        return self._session

    # ---- decoding

    def decode(self, name: str, *, batch: int, center: int = 0, params: SamplingParams = GREEDY) -> None:
        """Tokens a second while all sequences of a batch decode; `center` is the context at the window's middle."""
        sizes, session = self._sizes, self.session
        prompt_tokens = max(1, center - sizes.new_tokens // 2) if center else sizes.prompt_tokens

        def once(new_tokens: int) -> Trace:
            return session.run([session.prompt(prompt_tokens) for _ in range(batch)], new_tokens, params)

        once(min(12, sizes.new_tokens))
        traces = [once(sizes.new_tokens) for _ in range(sizes.repeats)]
        rates = [trace.steady_rate() for trace in traces]
        context = prompt_tokens + sizes.new_tokens / 2
        self._bench.case(
            name,
            median(rates),
            ceiling=Limits.of(self._bench, session).decode(batch, context),
            step_ms=_ms(median(trace.steady_step_s() for trace in traces)),
            with_prefill=round(median(trace.total_rate for trace in traces), 1),
            context=context,
            prompt_tokens=prompt_tokens,
            new_tokens=sizes.new_tokens,
            num_steps=len(traces[0].steady()),
            repeats=sizes.repeats,
            lowest=round(min(rates), 1),
            highest=round(max(rates), 1),
        )

    def host(self, name: str, batch: int) -> None:
        """The host's part of a decode step: schedule, launch and update, without waiting for the device."""
        session, sizes = self.session, self._sizes
        trace = session.run([session.prompt(sizes.prompt_tokens) for _ in range(batch)], sizes.new_tokens)
        host = sorted(trace.worked[step] for step in trace.steady())
        waited = median(trace.waited[step] for step in trace.steady())
        self._bench.case(
            name,
            1e3 * median(host),
            batch=batch,
            p99_ms=_ms(_quantile(host, 0.99)),
            waited_ms=_ms(waited),
            step_ms=_ms(trace.steady_step_s()),
            num_steps=len(host),
        )

    def variant(self, name: str, batch: int, center: int = 0, **options: bool | str) -> None:
        """Decoding with a model that is loaded with other options; `center` as for `decode`."""
        self.close()
        self._session = Session(self._bench.model, self._bench.device, **options)
        try:
            center = center or (self._sizes.middle_context if batch == 1 else 0)
            self.decode(name, batch=batch, center=center)
        finally:
            self.close()

    # ---- prompts

    def first_token(self, length: int) -> None:
        """From `add` to the first token at the host, of one request that meets an idle engine and an empty cache."""
        session = self.session
        num_prompt = max(1, length // self._sizes.ttft_scale)
        times = []
        for _ in range(self._sizes.ttft_repeats + 1):
            trace = session.run([session.prompt(num_prompt)], 4)
            times.append(1e3 * min(trace.first_token.values()))
        limit = Limits.of(self._bench, session).prompt_s(num_prompt)
        self._bench.case(
            f"ttft/bf16/{length}",
            median(times[1:]),
            ceiling=None if limit is None else 1e3 * limit,
            prompt_tokens=num_prompt,
            repeats=self._sizes.ttft_repeats,
            lowest=round(min(times[1:]), 3),
            highest=round(max(times[1:]), 3),
        )

    def prefill(self) -> None:
        """Prompt tokens a second of several prompts that want one token each."""
        session, sizes = self.session, self._sizes
        num_tokens = sizes.prefill_prompts * sizes.prefill_tokens

        def once() -> float:
            return session.run([session.prompt(sizes.prefill_tokens) for _ in range(sizes.prefill_prompts)], 1).total_s

        once()
        rates = [num_tokens / once() for _ in range(sizes.repeats)]
        limit = Limits.of(self._bench, session).prompt_s(sizes.prefill_tokens)
        self._bench.case(
            "prefill/bf16",
            median(rates),
            ceiling=None if limit is None else sizes.prefill_tokens / limit,
            num_prompts=sizes.prefill_prompts,
            prompt_tokens=sizes.prefill_tokens,
            repeats=sizes.repeats,
            lowest=round(min(rates), 1),
            highest=round(max(rates), 1),
        )

    def turns(self) -> None:
        """How much later the first token of turn 10 comes than that of turn 2, in a chat whose past is cached."""
        session, sizes = self.session, self._sizes
        ratios, seconds, tenths = [], [], []
        for _ in range(sizes.num_chats):
            history: list[int] = []
            times = []
            for _ in range(10):
                history += session.prompt(sizes.turn_tokens)
                trace = session.run([history], sizes.answer_tokens)
                times += [1e3 * time for time in trace.first_token.values()]
                (answer,) = trace.outputs.values()
                history += answer
            seconds.append(times[1])
            tenths.append(times[9])
            ratios.append(times[9] / times[1])
        self._bench.case(
            "turns/ttft_ratio_10_to_2",
            median(ratios),
            turn_2_ms=round(median(seconds), 3),
            turn_10_ms=round(median(tenths), 3),
            turn_tokens=sizes.turn_tokens,
            answer_tokens=sizes.answer_tokens,
            chats=sizes.num_chats,
        )

    # ---- mixed load

    def inter_token(self) -> None:
        """Time between tokens of sequences that decode while long prompts arrive, one in every gap."""
        session, sizes = self.session, self._sizes
        trace = Trace(time.perf_counter())
        decoding = {
            session.add(session.prompt(sizes.prompt_tokens), GREEDY, sizes.itl_tokens)
            for _ in range(sizes.itl_sequences)
        }
        trace.outputs = {seq_id: [] for seq_id in decoding}
        last: dict[int, float] = {}
        gaps: list[float] = []
        num_sent, next_prompt = 0, 0.0
        while any(len(trace.outputs[seq_id]) < sizes.itl_tokens for seq_id in decoding):
            is_steady = decoding <= trace.first_token.keys()
            if is_steady and num_sent < sizes.itl_prompts and time.perf_counter() >= next_prompt:
                trace.outputs[session.add(session.prompt(sizes.itl_prompt_tokens), GREEDY, 1)] = []
                num_sent += 1
                next_prompt = time.perf_counter() + sizes.itl_gap_s
            rows = session.step(trace)
            now = trace.times[-1]
            for row in rows:
                if row.seq_id in decoding and row.token_ids:
                    # Only while prompts come: what follows the last one would make the share of quiet steps anything.
                    if is_steady and row.seq_id in last and num_sent < sizes.itl_prompts:
                        gaps.append(1e3 * (now - last[row.seq_id]))
                    last[row.seq_id] = now
        while session.engine.has_work:
            session.step(trace)
        gaps.sort()
        if not gaps:
            raise RuntimeError("no token came while prompts arrived")
        self._bench.case(
            "itl/bf16/p99_ms",
            _quantile(gaps, 0.99),
            p50_ms=round(_quantile(gaps, 0.5), 3),
            max_ms=round(gaps[-1], 3),
            num_gaps=len(gaps),
            sequences=sizes.itl_sequences,
            prompts=num_sent,
            prompt_tokens=sizes.itl_prompt_tokens,
            seconds_between_prompts=sizes.itl_gap_s,
        )

    def _requests(self, session: Session) -> tuple[list[list[int]], list[int]]:
        """Prompts and output lengths of the mixed load; lengths are the same in every run."""
        sizes, rng = self._sizes, random.Random(0)
        inputs = lengths(sizes.mixed_requests, sizes.mixed_input_tokens, sizes.mixed_longest, rng)
        outputs = lengths(sizes.mixed_requests, sizes.mixed_output_tokens, sizes.mixed_longest, rng)
        return [session.prompt(length) for length in inputs], outputs

    def mixed(self) -> None:
        """Output tokens a second of many requests of log-normal lengths that all come at once."""
        session, sizes = self.session, self._sizes
        prompts, outputs = self._requests(session)
        session.run([session.prompt(len(ids)) for ids in prompts[: sizes.mixed_requests // 4]], 8)
        self._waste = []

        def look(step: int) -> None:
            if step % USAGE_EVERY == 0:
                usage = session.engine.scheduler.kv_usage()
                if usage.num_slots:
                    self._waste.append(1 - usage.num_stored_tokens / usage.num_slots)

        before = session.engine.stats()
        trace = session.run(prompts, outputs, on_step=look)
        after = session.engine.stats()
        self._bench.case(
            "mixed/bf16",
            trace.total_rate,
            seconds=round(trace.total_s, 3),
            requests=sizes.mixed_requests,
            input_tokens=sum(map(len, prompts)),
            output_tokens=sum(outputs),
            longest_input=max(map(len, prompts)),
            longest_output=max(outputs),
            lengths=f"log-normal, sigma {SIGMA}, clipped, seed 0",
            steps=after.num_steps - before.num_steps,
            preemptions=after.num_preemptions - before.num_preemptions,
        )

    def waste(self) -> None:
        """Slots of the running sequences' blocks that hold no token."""
        if not self._waste:
            raise MissingCase("it is looked at while mixed/bf16 runs, and that has not run")
        self._bench.case(
            "kv/waste_share", mean(self._waste), looks=len(self._waste), highest=round(max(self._waste), 4)
        )

    def small_pool(self) -> None:
        """How much of a small KV cache is in use while requests wait for memory."""
        session, sizes = self.session, self._sizes
        prompts, outputs = (half[: sizes.mixed_requests // 2] for half in self._requests(session))
        block_size = session.runner.ready.block_size
        longest = max(len(ids) + count for ids, count in zip(prompts, outputs, strict=True))
        num_tokens = sum(map(len, prompts)) + sum(outputs)
        num_blocks = max(num_tokens // sizes.pool_share, 2 * longest) // block_size
        session.resize(num_blocks)
        used: list[float] = []

        def look(step: int) -> None:
            if step % USAGE_EVERY == 0 and session.engine.stats().num_waiting:
                usage = session.engine.scheduler.kv_usage()
                used.append(usage.num_used_blocks / usage.num_blocks)

        before = session.engine.stats().num_preemptions
        trace = session.run(prompts, outputs, on_step=look)
        preemptions = session.engine.stats().num_preemptions - before
        self.close()
        if not used:
            raise RuntimeError(f"no request waited for memory in a cache of {num_blocks} blocks")
        self._bench.case(
            "kv/used_share_under_load",
            mean(used),
            num_blocks=num_blocks,
            looks=len(used),
            lowest=round(min(used), 4),
            preemptions=preemptions,
            tokens_per_s=round(trace.total_rate, 1),
        )


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 4)
