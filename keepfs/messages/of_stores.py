"""Messages about blocks, the services that have them, the API server and its token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepfs.messages.message import Message

if TYPE_CHECKING:
    from collections.abc import Mapping

TOKEN_REFUSED = Message(
    "token-refused",
    "the API server refuses the token from {source}: {reason}",
    "The token has expired, was revoked, or is of another cluster.",
    "Make a new token, and put it where the message says. A running mount reads it again on"
    " SIGHUP and when it is refused.",
)
TOKEN_RENEWAL_FAILED = Message(
    "token-renewal-failed",
    "the token from {source} can't be used, the old one stays: {reason}",
    "A mount was to read its token again, and the file is empty or unreadable.",
    "Write the token to that file. keepfs reads it again at the next refusal, or on SIGHUP.",
)
TOKEN_MAYBE_REFUSED = Message(
    "token-maybe-refused",
    "{reason}; if the token is the cause, replace it: it is reloaded from {source}",
    "A service refused a request of a mount. The token or the signature of a locator is bad.",
    "Replace the token in the place that the message names.",
)
BAD_ARGUMENT = Message(
    "bad-argument",
    "{text}",
    "A setting of the client can't be used: a malformed address, a token with characters that no"
    " token has, an empty token file, or no token at all.",
    "Correct the setting that the message names; keepfs check shows where each comes from.",
)
NO_TOKEN = Message(
    "no-token",
    "ARVADOS_API_TOKEN is not set, neither in the environment nor in"
    " ~/.config/arvados/settings.conf: set it, or give --token-file FILE; to go without a"
    " cluster, give --local-store DIR",
    "An API server is set, and no token. A service of systemd doesn't see the variables of your"
    " shell. The command exits with 2, so that a service is not restarted again and again.",
    "Set ARVADOS_API_TOKEN, or write the token to a file and give --token-file.",
)
BAD_SERVICES = Message(
    "bad-services",
    "{setting} is no list of Keep services: {reason}; write http://HOST:PORT/ or"
    " https://HOST:PORT/, separated by blanks",
    "An address of --keep-services, ARVADOS_KEEP_SERVICES or ARVADOS_KEEP_PROXY isn't a URL, or"
    " has a user name and password. The command exits with 2, so that a service is not restarted"
    " again and again.",
    "Correct the setting that the message names.",
)
API_UNREACHABLE = Message(
    "api-unreachable",
    "the API server doesn't answer: {reason} (settings: {settings})",
    "The host is wrong or down, its certificate isn't trusted, or a firewall is between.",
    "Check ARVADOS_API_HOST. For a private certificate authority set SSL_CERT_FILE. keepfs"
    " ignores http_proxy and https_proxy.",
)
SETUP_FAILED = Message(
    "setup-failed",
    "{reason} (settings: {settings})",
    "The list of Keep services could not be read from the API server, or is empty.",
    "keepfs check shows which step fails. --keep-services names services without the list.",
)
NO_SERVICE_ANSWERS = Message(
    "no-service-answers",
    "no Keep service answers: {answers} (settings: {settings})",
    "No address of a Keep service accepts connections: wrong addresses, a firewall, or all are"
    " down. From outside a cluster only its Keep proxy can be reached.",
    "Check the addresses in the message. --keep-services names others.",
)
PROXY_REFUSES = Message(
    "proxy-refuses",
    "the Keep proxy refuses the token: {answers} (settings: {settings})",
    "The token is not valid there, or may only store.",
    "If reads are to work, take a token that may read.",
)
NO_STORAGE_CLASS = Message(
    "no-storage-class",
    "the cluster has no storage class {name!r}; there are: {known}",
    "--storage-classes names a class that the cluster's configuration doesn't have.",
    "Take one of those that the message lists.",
)
LOCAL_STORE_FAILED = Message(
    "local-store-failed",
    "can't use the local store {path}: {reason}",
    "The directory can't be created, or not be read by this user.",
    "Correct its permissions, or give another --local-store.",
)
DISK_CACHE_FAILED = Message(
    "disk-cache-failed",
    "the disk cache in {directory} can't be used, blocks come from the services: {reason}",
    "The disk is full, read-only, failing or hangs, the directory isn't this user's alone, or"
    " there is a symbolic link in its place. Nothing but speed is lost.",
    "Correct what the message names, or give another --disk-cache-dir. A running mount tries"
    " again each minute; after a hang, as soon as the read has ended.",
)
DISK_CACHE_SHRUNK = Message(
    "disk-cache-shrunk",
    "the disk takes no more blocks: the disk cache in {directory} gives a tenth back and takes no"
    " more for an hour: {reason}",
    "The quota of the user, the disk or its inodes are used up, by the cache or by other files.",
    "Nothing, if the rest is enough for both; else a smaller --disk-cache, or another"
    " --disk-cache-dir.",
)
DISK_CACHE_DAMAGED = Message(
    "disk-cache-damaged",
    "the cached block {md5sum} was damaged and is fetched again: {reason}",
    "A file of the disk cache was changed, or the disk returned other bytes than were written.",
    "Nothing: the file was removed, unless the disk is read-only, and the block comes from the"
    " services. If it happens often, check the disk, and all other data on it.",
)
DISK_CACHE_FILE_REMOVED = Message(
    "disk-cache-file-removed",
    "damaged, removed: {path}",
    "keepfs cache verify found a file of the disk cache whose bytes are not those of its block.",
    "Nothing: the block is fetched again when it is read. If it happens often, check the disk.",
)
DISK_CACHE_FILE_LEFT = Message(
    "disk-cache-file-left",
    "damaged, but not removed: {path} ({reason}); make the disk writable, then verify again",
    "keepfs cache verify found a file of the disk cache whose bytes are not those of its block."
    " The disk is read-only, or the folder of the file isn't writable.",
    "Make the disk and the folder writable, and run keepfs cache verify again. Until then the"
    " block comes from the services: a read never returns wrong bytes.",
)
DISK_CACHE_UNREACHED = Message(
    "disk-cache-unreached",
    "can't {action} {what}: {reason}; correct that, then run keepfs cache again",
    "keepfs cache could not list a folder of the disk cache, or not read or remove a file in it."
    " Its counts lack what is there.",
    "Give yourself access to the folder that the message names (mode 0700), or make the disk"
    " writable, and run the command again. If the disk fails, remove the directory of the cache.",
)
DISK_CACHE_MISSING = Message(
    "disk-cache-missing",
    "there is no directory {directory}, so no disk cache; give the --disk-cache-dir of the mounts",
    "keepfs cache was given a directory that doesn't exist. It makes none.",
    "Correct the directory. keepfs status shows the one of a mount.",
)
DISK_CACHE_INCOMPLETE = Message(
    "disk-cache-incomplete",
    "{missing} of {count} blocks aren't in the disk cache: {reason}",
    "keepfs warm fetched the blocks, and the disk cache did not take all of them.",
    "Raise --disk-cache, or make room on the disk: a tenth of it, and at least 5 GiB, stay free.",
)
NOTHING_TO_WARM = Message(
    "nothing-to-warm",
    "{source} has no blocks, so nothing is fetched for it; if it should have some, check the name",
    "keepfs warm was given a folder or a collection without files.",
    "Correct the name, unless the source has no files or only empty ones.",
)
NEEDS_API_SERVER = Message(
    "needs-api-server",
    "{what}: set ARVADOS_API_HOST and ARVADOS_API_TOKEN, in the environment or in"
    " ~/.config/arvados/settings.conf{otherwise}",
    "Only Keep services are set. Collections come from the API server.",
    "Set ARVADOS_API_HOST and ARVADOS_API_TOKEN.",
)
OTHER_CLUSTER = Message(
    "other-cluster",
    "the mount's blocks are at {cluster}, and the settings say {host} ({source}): use the mount's",
    "The command was started with the settings of another cluster than the mount.",
    "Start it with the settings of the mount.",
)
NOT_FOUND = Message(
    "not-found",
    "{text}",
    "No service has the block, or there is no such collection. Keep deletes blocks that no"
    " collection names, usually after two weeks.",
    "keepfs where lists what each service says. keep-balance and the trash of a cluster may"
    " bring a block back within two weeks.",
)
DENIED = Message(
    "denied",
    "{text}",
    "The token, or the signature in the locator, is missing, expired, or of another token.",
    "Take the locator anew from its collection or from keepfs locate. keepfs check tests the"
    " token.",
)
TIMED_OUT = Message(
    "timed-out",
    "{text}",
    "A service took too long to answer, or sent less than it should in that time.",
    "Retry. keepfs check and keepfs where show which service is slow.",
)
UNREACHABLE = Message(
    "unreachable",
    "{text}",
    "No service, or not the API server, could be reached: down, wrong address, or a firewall.",
    "keepfs check tests the address of each service.",
)
CORRUPT = Message(
    "corrupt",
    "{text}",
    "Each copy of the block that a service sent has another MD5 than its name. The message names"
    " the services.",
    "keepfs verify lists the damaged copies. Store the block again from its source; tell the"
    " operator of these services.",
)
SERVICES_FULL = Message(
    "services-full",
    "{text}",
    "The services, or the disk of the local store, have no room.",
    "Make room. A mount keeps the bytes and retries.",
)
SERVICES_READ_ONLY = Message(
    "services-read-only",
    "{text}",
    "All services that were asked are read-only.",
    "Name writable services, or ask the operator of the cluster.",
)
TOO_FEW_COPIES = Message(
    "too-few-copies",
    "{text}",
    "Fewer services confirmed a copy than --copies or the cluster's default asks for.",
    "keepfs check shows which services refuse to store. Fewer copies can be asked for with"
    " --copies.",
)
REQUEST_FAILED = Message(
    "request-failed",
    "{text}",
    "A service answered with an error, or with something that can't be used.",
    "The message has the answer of each service; their logs have the id of the request.",
)
COPIES_MISSING = Message(
    "copies-missing",
    "{locator}: found {found} of {wanted} copies; to add copies, store the block again",
    "keepfs verify found fewer good copies than --copies asks for.",
    "Store the block again: keepfs get LOCATOR | keepfs put -. keep-balance does it for blocks of"
    " collections.",
)

USER_UNKNOWN = Message(
    "user-unknown",
    "the API server doesn't return the user of the token: {reason}",
    "The token has a scope: it may be good for Keep alone. The mount goes on without the check.",
    "Nothing, if the token is meant to be scoped. collections/ and --retain collection need a"
    " token without scopes.",
)
SERVICE_IGNORED = Message(
    "service-ignored",
    "ignoring a Keep service: {reason}",
    "An entry of the list of Keep services is malformed. The others are used.",
    "Tell the operator of the cluster, or correct --keep-services.",
)
BAD_COPY = Message(
    "bad-copy",
    "service {service} has a bad copy of {locator}: {reason}",
    "A service sent bytes that do not match the MD5 of the block. keepfs asks the next service,"
    " and returns no byte of the bad copy.",
    "keepfs verify LOCATOR lists all copies. Tell the operator of the service: its disk may be"
    " damaged.",
)
SERVICE_LIST_OLD = Message(
    "service-list-old",
    "going on with the known Keep services: {reason}",
    "The API server did not send the list of Keep services when it was due.",
    "Nothing, if it was a short outage. Else correct what the reason names.",
)
DEFAULTS_UNKNOWN = Message(
    "defaults-unknown",
    "the cluster's defaults are unknown: {reason}",
    "The API server did not send the configuration of the cluster: the default of --copies is 2,"
    " and storage classes are not checked.",
    "Nothing, if it was a short outage. --copies and --storage-classes set the values.",
)
CLASSES_UNCONFIRMED = Message(
    "classes-unconfirmed",
    "a Keep service confirms no storage classes: only copies are counted",
    "A Keep service of before Arvados 2.2 does not report in which storage classes it stored.",
    "Nothing, if all volumes are of one class. Else update the service.",
)
CLASSES_UNREADABLE = Message(
    "classes-unreadable",
    "a service confirms storage classes as {text}: not understood",
    "A Keep service, or a proxy before it, sent a malformed X-Keep-Storage-Classes-Confirmed.",
    "Tell the operator of the cluster. The copies of this answer are counted without classes.",
)
EXTRA_SERVICE_FAILED = Message(
    "extra-service-failed",
    "asking another service failed: {reason}",
    "A read asked a second service beside a slow one, and that failed unexpectedly. The first"
    " service still may answer.",
    "Make a report with keepfs bugreport if it happens again.",
)
CLIENT_NOT_CLOSED = Message(
    "client-not-closed",
    "can't close the client: {reason}",
    "The system has no thread left at the end of the mount. All files are stored or spilled.",
    "Nothing: the process ends and its connections with it. Raise ulimit -u or TasksMax.",
)

#: By the name of a cause (`keepfs.keep.errors.Cause`): the message of a failed request.
BY_CAUSE: Mapping[str, Message] = {
    "NOT_FOUND": NOT_FOUND,
    "DENIED": DENIED,
    "TIMED_OUT": TIMED_OUT,
    "UNREACHABLE": UNREACHABLE,
    "CORRUPT": CORRUPT,
    "FULL": SERVICES_FULL,
    "READ_ONLY": SERVICES_READ_ONLY,
    "TOO_FEW_COPIES": TOO_FEW_COPIES,
    "OTHER": REQUEST_FAILED,
}
