"""Messages about the command line, its settings, and the files that commands read and write."""

from __future__ import annotations

from keepfs.messages.message import Message

USAGE = Message(
    "usage",
    "{text}",
    "The command line has an unknown command or option, or an argument is missing.",
    "keepfs COMMAND --help lists the arguments and options of a command.",
)
BAD_VALUE = Message(
    "bad-value",
    "{text}",
    "The value of an option, variable or key of the configuration file isn't of its kind. The"
    " message names the option and what is accepted.",
    "Correct the value. keepfs check shows where each value comes from.",
)
OPTIONS_CONFLICT = Message(
    "options-conflict",
    "{text}",
    "Two options exclude each other, or one needs another.",
    "Leave one of them out, or add the one that the message names.",
)
DISK_CACHE_OFF = Message(
    "disk-cache-off",
    "the disk cache is off, so --disk-cache-dir has no effect; give its size too: --disk-cache"
    " SIZE or --disk-cache auto",
    "A directory of the disk cache is given on the command line or in the configuration file, and"
    " no size.",
    "Give --disk-cache, or leave --disk-cache-dir out. --disk-cache off ends the warning.",
)
UNKNOWN_VARIABLE = Message(
    "unknown-variable",
    "no option reads {name}, which is set in the environment{hint}",
    "A variable begins with KEEPFS_, and no option of keepfs has that name. It is probably"
    " misspelt, and the setting that was meant has no effect.",
    "Correct its name, or unset it. The variable of --option-name is KEEPFS_OPTION_NAME.",
)
BAD_CONFIG = Message(
    "bad-config",
    "{text}",
    "The configuration file is missing, can't be read, isn't TOML, has an unknown key, or has a"
    " value of the wrong kind.",
    "Correct the file that the message names. Its keys are the options of keepfs mount without"
    " the dashes; keepfs check shows which file is read.",
)
NOTHING_CONFIGURED = Message(
    "nothing-configured",
    """\
no setting says where the blocks are. Use either
  an Arvados cluster:  set ARVADOS_API_HOST and ARVADOS_API_TOKEN, in the environment
                       or in ~/.config/arvados/settings.conf
  or this machine:     --local-store DIR   (or KEEP_LOCAL_STORE=DIR); needs no cluster""",
    "Neither a local store nor Keep services nor an API server is set.",
    "Set one of them. A service of systemd doesn't see the variables of your shell.",
)
NO_HOME = Message(
    "no-home",
    "can't choose the state directory: there is no home directory; set HOME, or give --state-dir",
    "The user has no home directory and HOME is not set.",
    "Set HOME, or give --state-dir.",
)
NO_SUCH_PATH = Message(
    "no-such-path",
    "can't resolve {path}: {reason}",
    "The path begins with ~ and a user that doesn't exist.",
    "Give an absolute path.",
)
NO_WORKING_DIRECTORY = Message(
    "no-working-directory",
    "the working directory was removed, and a relative path is below it: cd to another directory",
    "A path of the command line or of a setting is relative, and the directory that the command"
    " was started in doesn't exist any more.",
    "Go to another directory, or give absolute paths.",
)
BAD_LOCATOR = Message(
    "bad-locator",
    "{text}",
    "The text is not the locator of a block: MD5 as 32 lower-case hexadecimal digits, + and the"
    " size in bytes, and hints that begin with a capital letter.",
    "Take the locator from keepfs locate, keepfs put or a manifest, with all of its hints. The"
    " files of a collection are in collections/ of a mount, by its uuid or portable data hash.",
)
BAD_COLLECTION = Message(
    "bad-collection",
    "{name!r} is neither a collection's uuid nor a portable data hash",
    "A collection has a uuid (zzzzz-4zz18-...) and a portable data hash (MD5+size).",
    "Give one of them. A collection's name is not enough: names are not unique.",
)
BAD_NAME = Message(
    "bad-name",
    "{text}",
    "A file name is empty, or has a newline where a line of output ends with one.",
    "Give a path; use -0 for names with newlines.",
)
FILE_FAILED = Message(
    "file-failed",
    "{text}",
    "The operating system refused to open, read or write a file or directory. The message names"
    " it and the reason.",
    "Check that it exists, its permissions, and the free space of its file system.",
)
OUTPUT_FAILED = Message(
    "output-failed",
    "{output}: {reason}",
    "Standard output or the output file can't be written: the disk is full, or the file exists"
    " and must not.",
    "Make room, or write to another file. An incomplete file is removed.",
)
NO_INPUT = Message(
    "no-input",
    "can't read standard input: it is closed",
    "`-` names standard input, and the command was started without one.",
    "Connect standard input, or name a file.",
)
BINARY_OUTPUT = Message(
    "binary-output",
    "{locator} isn't text, and standard output is a terminal; use -o FILE or --force",
    "The block is binary. Its bytes could change the state of the terminal.",
    "Write it to a file with -o FILE, or use --force.",
)
NO_PROGRAM = Message(
    "no-program",
    "can't run {program}: {reason}",
    "The program behind --exec doesn't exist, or is not executable.",
    "Correct its path. It is looked for in PATH, and started in the mount.",
)
SERVICE_NOT_INSTALLED = Message(
    "service-not-installed",
    "{reason}",
    "keepfs service install could not write the unit or the helper of mount(8).",
    "Follow the advice in the message; --print prints the unit instead.",
)
PROGRAM_CHANGEABLE = Message(
    "program-changeable",
    "the service runs {program} as root, but {path} can be changed by other users; install keepfs"
    " where only root can write: docs/install.md",
    "keepfs service install was run with a keepfs that users other than root can replace.",
    "Install keepfs for all users, as root (docs/install.md), and run the command again.",
)
UNKNOWN_MESSAGE = Message(
    "unknown-message",
    "there is no message {name!r}; keepfs explain lists all of them",
    "keepfs explain was given a text that has no id of a message of this version.",
    "Give the words in brackets at the end of a message, or the whole message.",
)
UNEXPECTED = Message(
    "unexpected",
    "{what} failed unexpectedly",
    "This is a defect of keepfs, or the machine has no memory left. The log has a traceback below"
    " the message.",
    "Make a report with keepfs bugreport, and file it with what led to the failure.",
)
