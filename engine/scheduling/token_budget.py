"""How the tokens of a step are shared out among running sequences. Pure arithmetic, called by the Scheduler.

A step lasts about as long as its prompt tokens take, and every sequence that decodes waits for it. Hence:

- Who decodes always gets its one token.
- Prompts fill `max_num_batched_tokens` only while nobody decodes, and half of it otherwise. The longest pause between
  two tokens shrinks by a third; the throughput of a full engine hardly does, because a step costs little besides its
  tokens. Chunks of prompts beside decoding rows: Agrawal et al., "Taming Throughput-Latency Tradeoff in LLM Inference
  with Sarathi-Serve", 2024.
- Half of the prompts' share goes to the prompt that came first, so that none starves, however many short ones follow;
  the other half to those with the fewest tokens left, so that a short one does not wait for all chunks of a long one.
  If sequences wait to be admitted, half of that half is left for them.

tests/engine/scheduling/test_policy.py computes what these rules are worth with a model of the costs.
"""

from __future__ import annotations


def share_out(uncomputed: list[int], max_tokens: int, *, someone_waits: bool) -> tuple[list[int], int]:
    """Tokens for each running sequence.

    Args:
        uncomputed: Tokens that each of them could compute now, in the order of rank; 1 is a decode.
        max_tokens: Most tokens in a step, at least as many as there are sequences.
        someone_waits: Whether tokens shall be left for sequences that are not running yet.

    Returns:
        Shares, at most `uncomputed`, and how many tokens are left for others.
    """
    num_decodes = uncomputed.count(1)
    budget = min(max_tokens - num_decodes, -(-max_tokens // 2)) if num_decodes else max_tokens
    if num_decodes + uncomputed.count(0) == len(uncomputed):
        return uncomputed, budget
    shares = [1 if wanted == 1 else 0 for wanted in uncomputed]
    first, *others = (index for index, wanted in enumerate(uncomputed) if wanted > 1)
    shares[first] = min(uncomputed[first], -(-budget // 2))
    budget -= shares[first]
    if not someone_waits:
        others.insert(0, first)
        reserved = 0
    else:
        reserved = -(-budget // 2) if others else budget
    for index in sorted(others, key=uncomputed.__getitem__):
        more = min(uncomputed[index] - shares[index], budget - reserved)
        shares[index] += more
        budget -= more
    return shares, budget
