"""Messages about a mount that runs: its requests, tasks, control requests and metrics."""

from __future__ import annotations

from keepfs.messages.message import Message

REQUEST_TIMED_OUT = Message(
    "request-timed-out",
    "{what}: {errno} after {seconds} s (pid {pid})",
    "A request of a program took longer than --request-timeout: a service, the network or the"
    " disk hangs.",
    "keepfs check tests the services. A retry may succeed; raise --request-timeout for slow"
    " links.",
)
MOUNT_STUCK = Message(
    "mount-stuck",
    "STUCK: {what}{withheld}\n{stacks}",
    "The event loop of the mount has not run for a minute, or a request has no answer a minute"
    " after its deadline. The log has the stack of each task and thread, once.",
    "Under systemd the service is restarted. Else read the stacks: they show what the mount"
    " waits for, mostly a disk that hangs. keepfs unmount --force ends the mount.",
)
MOUNT_ANSWERS_AGAIN = Message(
    "mount-answers-again",
    "the mount is not stuck any more",
    "A mount that was stuck answers requests again.",
    "Read the stacks that [mount-stuck] left in the log.",
)
REQUEST_ABANDONED = Message(
    "request-abandoned",
    "the caller of a request that was lost hangs until the mount ends",
    "The FUSE library failed in the middle of a request, and this kernel can't send it again"
    " (Linux 6.9 can).",
    "Unmount to end the program that hangs, and report the failure that the log has before.",
)
TASK_RESTARTED = Message(
    "task-restarted",
    "{name} failed; restarting it in {seconds} s",
    "A task of the mount failed unexpectedly: a defect of keepfs, or no memory. The log has a"
    " traceback below the message. The mount goes on.",
    "Make a report with keepfs bugreport if it happens again.",
)
TASK_GIVEN_UP = Message(
    "task-given-up",
    "{name} failed {count} times in a row",
    "A task of the mount failed again at each restart. The log has the traceback. The mount ends"
    " and stores or spills what is not stored.",
    "Make a report with keepfs bugreport, and mount again.",
)
NOT_WAITING = Message(
    "not-waiting",
    "{signal} again: not waiting",
    "A second SIGTERM or SIGINT came while the mount stored what was not stored.",
    "Nothing: the rest is written to the state directory, and the next mount restores it.",
)
NO_CONTROL = Message(
    "no-control",
    "the mount takes no control requests ({reason}): unmount it, and mount it with this version"
    " of keepfs",
    "The mount is of an older keepfs, or could not open its control socket.",
    "Unmount it, and mount it again. The log of the mount has the reason.",
)
NO_CONTROL_SOCKET = Message(
    "no-control-socket",
    "keepfs status, commit, manifest and import will not work here: no socket {path}: {reason}",
    "The mount could not make its socket in the runtime directory: the path has over 107 bytes,"
    " or the disk is full.",
    "Set XDG_RUNTIME_DIR to a directory with a short path, and mount again.",
)
CONTROL_REQUEST_LOST = Message(
    "control-request-lost",
    "a control request can't be answered: {reason}",
    "The mount has no descriptor or no thread left for a command such as keepfs status.",
    "Raise the limits of the process (ulimit -n, ulimit -u, TasksMax), and repeat the command.",
)
CONTROL_UNANSWERED = Message(
    "control-unanswered",
    "the mount did not answer a control request: {reason}",
    "The mount ended, is stopped, or did not answer within 60 s.",
    "keepfs status shows what it does. If it hangs, send its process SIGUSR2, which writes what"
    " it waits for to the log.",
)
CONTROL_REFUSED = Message(
    "control-refused",
    "refused by the mount: {reason}",
    "The mount can't do what the command asks for: it is read-only, it ends, a file exists"
    " already, or it is of another version of keepfs.",
    "Correct what the message names.",
)
NO_MOUNT_OF_USER = Message(
    "no-mount-of-user",
    "no keepfs mount of this user on {path}; keepfs status lists them",
    "Nothing is mounted at the path, or another user mounted it.",
    "keepfs status without an argument lists the mounts of this user; root sees its own only.",
)
PROCESS_REMAINS = Message(
    "process-remains",
    "unmounted {path}, but its process {pid} still runs ({state}): only it has files that are not"
    " stored yet. kill -9 {pid} ends it, and loses those that are not written to {directory};"
    " keepfs unsaved list shows them",
    "keepfs unmount --force removed the mount, and its process hangs: in most cases it waits for"
    " a disk.",
    "Wait for the disk, or end the process with kill -9 if the files can be made again.",
)
METRICS_NOT_SERVED = Message(
    "metrics-not-served",
    "can't serve metrics on {address}: {reason}; use another address or port",
    "Another program listens on the port of --metrics, or the address is not of this machine. The"
    " mount exits with 2, so that a service is not restarted again and again.",
    "Give another address or port. Each mount needs its own.",
)
NO_METRICS_FILE = Message(
    "no-metrics-file",
    "can't write metrics to {path}: {reason}; {advice}",
    "The directory of the file given to --metrics doesn't exist, or this user can't write it. The"
    " mount exits with 2, so that a service is not restarted again and again.",
    "Make the directory, or give another file. In a service, ReadWritePaths= must allow it.",
)
METRICS_NOT_WRITTEN = Message(
    "metrics-not-written",
    "the metrics can't be written to {path}: {reason}",
    "The directory of the metrics file was removed, is read-only or full. The mount goes on.",
    "Correct what the reason names: the file is written again every 15 s.",
)
METRICS_NOT_REMOVED = Message(
    "metrics-not-removed",
    "the metrics can't be removed from {path}: {reason}",
    "The mount has ended, and its metrics file is in a directory that can't be changed any more.",
    "Remove the file: it has the last figures of a mount that has ended.",
)
CACHE_TOO_SMALL = Message(
    "cache-too-small",
    "the cache of {size} MiB is too small: of {fetched} blocks fetched within a minute, {again}"
    " had been in it; --cache-size {wanted}MiB would have kept them",
    "Programs read more blocks in turn than --cache-size holds, so each is fetched again.",
    "Mount with the --cache-size that the message names, or with --disk-cache.",
)
