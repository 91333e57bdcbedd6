"""What the prompt says of itself: the texts of /help, and of commands that were given too little."""

from __future__ import annotations

from modelfiles.parameters import PARAMETERS

USAGE = """\
Commands:
  /set            Change how the model answers, and how answers are shown
  /show           Show what the model is
  /load <model>   Go on with another model or a saved conversation
  /save <model>   Save the conversation and its settings as a model
  /clear          Forget what was said
  /list [prefix]  List the models
  /bye            Leave
  /?, /help       This text; more: /? set, show, parameters, shortcuts

A message that begins with \"\"\" ends with \"\"\" and may have many lines.
What is pasted is one message."""

SET_USAGE = """\
Commands:
  /set parameter ...     A parameter of the model; /? parameters lists them
  /set system <text>     The system message; \"\"\" around it for many lines
  /set format json       Answer in JSON; a JSON schema says in which
  /set noformat          Answer in text
  /set think [level]     Think before answering: low, medium, high or max
  /set nothink           Answer at once
  /set verbose           Show counts and times after each answer
  /set quiet             Do not
  /set markdown          Render Markdown
  /set nomarkdown        Show Markdown as it was written
  /set wordwrap          Break lines between words
  /set nowordwrap        Do not
  /set history           Remember what is typed for the next time
  /set nohistory         Do not"""

SHOW_USAGE = """\
Commands:
  /show info         What the model is and can do
  /show license      Its license
  /show modelfile    Its Modelfile
  /show parameters   Its parameters, and those that were set here
  /show system       The system message
  /show template     Its template"""

SHORTCUTS = """\
Keys:
  Ctrl-A, Ctrl-E      To the start of the line (Home), to its end (End)
  Alt-B, Alt-F        A word back, a word forward
  Ctrl-K, Ctrl-U      Delete to the end of the line, to its start
  Ctrl-W              Delete the word before the cursor
  Ctrl-Y              Insert what was deleted last
  Ctrl-P, Ctrl-N      Back and forward through the history (Up, Down)
  Ctrl-R              Search the history
  Ctrl-J              Begin a new line
  Ctrl-G              Edit the message in an editor
  Tab                 Complete a command or the name of a model
  Ctrl-L              Clear the screen
  Ctrl-C              Stop the answer; clear the message
  Ctrl-Z              Suspend; the shell's fg comes back
  Ctrl-D              Leave (/bye)"""

PARAMETER_HELP = {
    "temperature": "How freely to choose; 0 takes the likeliest",
    "top_k": "Choose among the k likeliest; 0 among all",
    "top_p": "Choose among the likeliest that hold p of all",
    "min_p": "Leave out what is less than p times as likely",
    "typical_p": "Choose among the typical that hold p of all",
    "seed": "The same seed gives the same answer",
    "num_predict": "Most tokens of an answer; -1 for no limit",
    "num_ctx": "Tokens that the model sees at once",
    "num_keep": "Tokens at the start that always stay",
    "stop": "Where an answer ends; quotes hold spaces",
    "repeat_penalty": "Above 1 repetitions become less likely",
    "repeat_last_n": "Tokens to look for them in; -1 for all",
    "presence_penalty": "Makes tokens less likely that have been there",
    "frequency_penalty": "Likewise, by how often",
    "num_gpu": "Layers on the GPU; -1 for as many as fit",
    "main_gpu": "The GPU to use",
    "num_batch": "Tokens of a prompt computed at once",
    "num_thread": "Threads on a CPU; 0 for one a core",
    "use_mmap": "Map the files into memory",
    "draft_num_predict": "Tokens that a draft model guesses ahead",
}
KINDS = {"integer": "integer", "float32": "number", "boolean": "true, false", "array": "text ..."}

PARAMETER_USAGE = "/set parameter <name> <value>, with one of these:\n" + "\n".join(
    f"  {name:<17} {KINDS[PARAMETERS[name].kind]:<12}  {text}" for name, text in PARAMETER_HELP.items()
)

HELP = {"set": SET_USAGE, "show": SHOW_USAGE, "parameters": PARAMETER_USAGE, "shortcuts": SHORTCUTS}
"""Topics of /help."""
