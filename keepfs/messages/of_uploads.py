"""Messages about files of upload/, unsaved files, and collections made of them."""

from __future__ import annotations

from keepfs.messages.message import Message

NOT_IN_MOUNT = Message(
    "not-in-mount",
    "{path} isn't in {where}",
    "The file is not in a mount of keepfs, or not in its upload/.",
    "Copy it to upload/ of a mount.",
)
NOT_SERVED = Message(
    "not-served",
    "{path} is in a mount that no process of this user serves: run the command as the user that"
    " mounted it, on that machine",
    "The mount is another user's, or its process has ended.",
    "Run the command as the user that mounted.",
)
NO_BLOCK_FILE = Message(
    "no-block-file",
    "{path} isn't a file of by_id/ or upload/",
    "It is a directory, or a file that has no locator, like the mount's README.",
    "Name a file of by_id/ or upload/; keepfs manifest lists the blocks of a folder.",
)
NOT_STORED_YET = Message(
    "not-stored-yet",
    "{path} isn't stored yet ({state}): {reason}",
    "The file is open for writing, or its store has failed and is retried.",
    "Close it, or wait until it is stored: sync FILE.",
)
LIST_TOO_LONG = Message(
    "list-too-long",
    "the list of locators of {path} is too long for an extended attribute; use --output FILE",
    "The kernel limits an extended attribute to 64 KiB: about 700 signed locators.",
    "keepfs locate --output LIST writes any number of locators to a file.",
)
REFUSED_NAMES = Message(
    "refused-names",
    "{count} {what} ({advice}):\n{names}",
    "Files of the folder are not stored, can't be in a manifest, or have signatures that have"
    " ended; the message names them.",
    "Follow the advice in the message.",
)
NO_STATE_DIRECTORY = Message(
    "no-state-directory",
    "{path} isn't mounted by this user, and has no state directory {directory}; if it was mounted"
    " with --state-dir, give the same option here",
    "Nothing was mounted at the path by this user: the path is mistyped, or the mount is of"
    " another user.",
    "Give the --state-dir of the mount, or its mount point as it was given to mount.",
)
UNSAVED_DAMAGED = Message(
    "unsaved-damaged",
    "{text}",
    "A record of an unsaved file in the state directory is damaged, or of another user.",
    "The message names the record. Copy what can be read of it, then remove it.",
)
NO_UNSAVED_FILE = Message(
    "no-unsaved-file",
    "there is no unsaved file {name}; list the names: keepfs unsaved list {path}",
    "The name isn't one that keepfs unsaved list prints.",
    "Take the first column of keepfs unsaved list.",
)
UNSAVED_IS_MOUNTED = Message(
    "unsaved-is-mounted",
    "{path} is mounted, so its unsaved files are in {path}/upload; copy or remove them there",
    "A running mount has restored its unsaved files.",
    "Copy or remove them in upload/, or unmount first.",
)
UNSAVED_NOT_MOUNTED = Message(
    "unsaved-not-mounted",
    "{path} isn't mounted; mount it: the mount restores its unsaved files and stores them",
    "Unsaved files are stored by a mount only.",
    "Mount it again.",
)
NAME_TAKEN = Message(
    "name-taken",
    "{reason}, or --ensure-unique-name, or --update {uuid}",
    "The project has a collection of that name.",
    "Take another name, let the server choose one with --ensure-unique-name, or replace the"
    " content of the other collection with --update.",
)
NO_EXPECTATION = Message(
    "no-expectation",
    "{path} was neither imported from {uuid} nor committed to it: give --expect with the portable"
    " data hash that you saw",
    "commit --update replaces only what is known, so that no other change is lost.",
    "Give --expect with the portable data hash that the collection has now.",
)
MANIFEST_TOO_LARGE = Message(
    "manifest-too-large",
    "the manifest has {size} bytes, and the cluster takes requests of {most} at most"
    " (API.MaxRequestSize): commit its folders one by one, or files of fewer and larger blocks",
    "The cluster limits the size of a request.",
    "Commit the folders one by one.",
)
NOT_IN_LOCAL_STORE = Message(
    "not-in-local-store",
    "the mount has a local store, which {limit}",
    "A local store keeps manifests by their hash. It has no uuids, names, projects or properties.",
    "Name the collection by its portable data hash, and leave the other options out.",
)
BAD_MANIFEST = Message(
    "bad-manifest",
    "the manifest of collection {name} can't be read: {reason}",
    "The manifest that the server sent is malformed at the place that the message names.",
    "Ask the operator of the cluster: the collection's record is damaged.",
)
FOLDER_EXISTS = Message(
    "folder-exists",
    "{path} exists{why}",
    "The folder to import to isn't empty, or an earlier import was ended.",
    "Name a new folder, or remove the one that the message names.",
)
IMPORT_INCOMPLETE = Message(
    "import-incomplete",
    "{path} is incomplete, remove it: {reason}",
    "The import was ended before all files were named.",
    "Remove the folder, and import again.",
)
NOT_STORED = Message(
    "not-stored",
    "not stored: {path}: {reason}",
    "Keep could not be reached, or refused the blocks of a file. The mount keeps the bytes and"
    " retries; at its end it writes them to the disk.",
    "Correct what the reason names. keepfs unsaved list MOUNTPOINT lists such files; keepfs"
    " unsaved retry stores them at once.",
)
SPILLED = Message(
    "spilled",
    "not stored, written to the disk as {record}: {path} ({reason})",
    "The mount ended before the file could be stored. Its bytes are in the state directory.",
    "Mount again: the file is restored and stored. keepfs unsaved export copies it.",
)
SPILL_FAILED = Message(
    "spill-failed",
    "can't write {path} to the disk: {reason}",
    "The mount ended, Keep did not take the file, and the disk of the state directory did not"
    " either.",
    "Make room in the state directory, and store the file again from its source.",
)
LOST_AT_END = Message(
    "lost-at-end",
    "LOST, as neither Keep nor the disk took it: {path}",
    "The mount ended, and a file could be written neither to Keep nor to the state directory.",
    "Store the file again from its source. Make room in the state directory.",
)
SPILL_RECORD_LEFT = Message(
    "spill-record-left",
    "can't delete the obsolete {record}: {reason}",
    "A file was stored or removed, and the copy in the state directory can't be deleted.",
    "Nothing: the next mount deletes it. If the reason stays, check the permissions and the disk"
    " of the state directory.",
)
NOT_RESTORED = Message(
    "not-restored",
    "an unsaved file stays on the disk: {reason}",
    "A mount could not take up a file that a former mount wrote to the state directory: the"
    " record is damaged, or --staging-size is too small for it.",
    "Follow the reason, and mount again. keepfs unsaved export copies what can be read.",
)
UNSAVED_NOT_NOTED = Message(
    "unsaved-not-noted",
    "can't record which files are {state}: {reason}",
    "The disk of the state directory is full or fails. keepfs unsaved list may be out of date;"
    " the files themselves are in memory.",
    "Make room in the state directory, or check the disk.",
)
