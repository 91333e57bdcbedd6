"""Small state machines over streamed text: thinking tags, tool calls."""
