"""What each environment variable means, in a sentence, for the end of every command's help."""

from __future__ import annotations

VARIABLES = {
    "HOB_ALLOW_REMOTE": "1 allows an address that other machines reach.",
    "HOB_CONTEXT_LENGTH": "Context in tokens where neither request nor model says. Default: by the memory there is.",
    "HOB_DEBUG": "1 shows debug messages and tracebacks.",
    "HOB_DEVICE": "Where models run: auto, cpu or cuda. Default: auto.",
    "HOB_DTYPE": "Type of the weights in memory: auto, float32, float16 or bfloat16. Default: auto.",
    "HOB_DRAIN": "How long running answers may go on when the daemon ends. Default: 30s.",
    "HOB_EDITOR": "The editor that Ctrl-G opens. Default: VISUAL, then EDITOR, then vi.",
    "HOB_GPU_OVERHEAD": "Bytes of each GPU's memory that are left to others.",
    "HOB_HOME": "One folder for models, configuration and state, instead of the platform's.",
    "HOB_HOST": "Address of the daemon. Default: 127.0.0.1:11434.",
    "HOB_KEEP_ALIVE": "How long an idle model stays loaded. Default: 5m.",
    "HOB_KV_CACHE_TYPE": "Type of the cached keys and values: auto, f32, f16, bf16, fp8, int8 or q8_0. Default: auto.",
    "HOB_LOAD_TIMEOUT": "How long a load may make no progress. Default: 5m.",
    "HOB_MARKDOWN": "0 shows Markdown as it was written. Default: 1.",
    "HOB_MAX_LOADED_MODELS": "How many models may be loaded at once. Default: as many as fit.",
    "HOB_MAX_QUEUE": "How many requests may wait. Default: 512.",
    "HOB_MODELS": "Folder of the models.",
    "HOB_NOHISTORY": "1 keeps no history of what is typed at the prompt.",
    "HOB_NUM_THREADS": "Threads of a model that runs on the CPU. Default: one for each core.",
    "HOB_ORIGINS": "Web origins that may call the daemon, separated by commas.",
    "HOB_SPARE_WORKER": "0 keeps no worker ready for the next model. Default: 1.",
    "HOB_WEIGHT_TYPE": "Unquantised weights become this when loaded: fp8 or int8; auto keeps them. Default: auto.",
}


def epilog(*names: str) -> str:
    """The block for a command that reads these variables. \\b keeps typer from filling it into a paragraph."""
    width = max(len(name) for name in names)
    lines = (f"  {name.ljust(width)}  {VARIABLES[name]}" for name in names)
    return "\b\nEnvironment variables:\n" + "\n".join(lines)
