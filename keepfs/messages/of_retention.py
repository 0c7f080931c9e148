"""Messages about how the blocks of upload/ are kept in Keep."""

from __future__ import annotations

from keepfs.messages.message import Message

NOT_RETAINED = Message(
    "not-retained",
    "not retained: upload/{path}: {reason}",
    "A file of upload/ can't be in the collection that keeps the blocks. The other files are.",
    "Do what the reason asks for, or copy the file elsewhere before its signatures end"
    " (user.keep.expires).",
)
COLLECTION_IN_TRASH_SOON = Message(
    "collection-in-trash-soon",
    "collection {uuid}, which keeps upload/, is to be trashed at {time}: another one is made",
    "Somebody set a time at which the cluster trashes the collection of the mount.",
    "Nothing: the mount makes another collection with the same files.",
)
COLLECTION_CHANGED = Message(
    "collection-changed",
    "collection {uuid}, which keeps upload/, was changed at {time} by {user}: it stays as it is,"
    " and another one is made",
    "Somebody changed the collection of the mount. keepfs does not overwrite that change.",
    "Nothing: the mount makes another collection. Delete the changed one if nobody needs it.",
)
COLLECTION_GONE = Message(
    "collection-gone",
    "collection {uuid}, which keeps upload/, was trashed or deleted: another one is made",
    "Somebody trashed or deleted the collection of the mount.",
    "Nothing, if the mount runs: it makes another collection, and stores missing blocks again.",
)
RETENTION_FAILED = Message(
    "retention-failed",
    "keeping upload/ failed, and is retried: {reason}",
    "The API server, or a Keep service, refused or did not answer while the mount brought the"
    " collection of upload/ up to date. Stored files stay readable until their signatures end.",
    "Correct what the reason names. keepfs status shows when the first signature ends.",
)
RETENTION_BEHIND = Message(
    "retention-behind",
    "the collection of upload/ has not the last changes: they are kept until {time} after they"
    " were stored; the next mount, or keepfs renew, completes it",
    "The mount ended before it could update the collection: the API server did not answer, or"
    " --drain-timeout was over.",
    "Mount again, or run keepfs renew MOUNTPOINT, within that time.",
)
RETAINED_BY_PUT = Message(
    "retained-by-put",
    "--retain collection is not possible, put is used instead: {reason}",
    "The API server does not let this token create a collection.",
    "Take a token that may create collections, or set --retain put, which stores the blocks"
    " again before their signatures end. It needs a mount that runs.",
)
RETENTION_OFF = Message(
    "retention-off",
    "--retain off: what is stored in upload/ is unreadable when its signatures end, and removed"
    " soon after: usually in two weeks (user.keep.expires)",
    "The mount was started with --retain off on a cluster.",
    "Name the blocks in a collection within that time (keepfs commit), or leave the option out.",
)
RETENTION_RECORD_DAMAGED = Message(
    "retention-record-damaged",
    "{reason}: new collections are made, the old ones stay",
    "The list of the mount's collections in the catalog can't be read.",
    "Nothing is lost. Delete the former collections on the cluster when the new ones are"
    " complete.",
)
NOT_STORED_AGAIN = Message(
    "not-stored-again",
    "not stored again: {reason}",
    "A block of upload/ had to be stored again to get a fresh signature, and its read or its"
    " store failed. The mount retries.",
    "Correct what the reason names before the signature ends.",
)
SIGNED_BY_FORMER_TOKEN = Message(
    "signed-by-former-token",
    "each service refuses the signature of upload/{path}, which ends at {time} UTC: another token"
    " signed it. --retain put can neither read nor renew such files, and they are lost when their"
    " signatures end. Mount once with the former token and change it while mounted (--token-file,"
    " then SIGHUP), or mount with --retain collection and the former token before you change it",
    "The mount was started with another token than the one that stored the files of upload/.",
    "Follow the advice of the message before the time that it names.",
)
FILE_LOST = Message(
    "file-lost",
    "LOST: upload/{path}: {reason}",
    "A block of the file is not in Keep any more, or its signature has ended. user.keep.state of"
    " the file is `lost`.",
    "Store the file again from its source. keepfs uploads --lost lists all lost files. A block"
    " that the cluster still has in its trash can be brought back by its operator; then send the"
    " process SIGUSR1.",
)
MORE_FILES_LOST = Message(
    "more-files-lost",
    "LOST: {count} further files of upload/",
    "More files are lost than the log names.",
    "keepfs uploads --lost lists them.",
)
COLLECTION_NOT_REFRESHED = Message(
    "collection-not-refreshed",
    "collection {name} stays as it was known: {reason}",
    "A newer version of a collection in collections/ could not be read from the API server.",
    "Nothing, if it was a short outage: the mount asks again. Else correct what the reason names.",
)
SIGNATURES_NOT_RENEWED = Message(
    "signatures-not-renewed",
    "the signatures of collection {name} could not be renewed: {reason}",
    "A block of a collection was refused, and the API server did not send fresh signatures.",
    "Correct what the reason names, and read the file again.",
)
RETENTION_WORKS_AGAIN = Message(
    "retention-works-again",
    "upload/ is kept again",
    "After [retention-failed], the collection of upload/ is up to date again.",
    "Nothing.",
)
LOST_NOT_RECORDED = Message(
    "lost-not-recorded",
    "a lost file can't be recorded: {reason}",
    "No service has a block of a file, and the catalog can't be written. The read failed.",
    "Make room in the state directory, or check its disk. The next read of the file records it.",
)
LOST_NOT_FORGOTTEN = Message(
    "lost-not-forgotten",
    "lost files are not tried again: {reason}",
    "SIGUSR1 asks a mount to try lost files again, and the catalog can't be written.",
    "Make room in the state directory, or check its disk, and send SIGUSR1 again.",
)
