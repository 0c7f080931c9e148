"""Messages about mounting, unmounting, and the state of a mount."""

from __future__ import annotations

from keepfs.messages.message import Message

NO_MOUNT_POINT = Message(
    "no-mount-point",
    "the mount point {path} doesn't exist: mkdir -p {path}",
    "The directory to mount on doesn't exist.",
    "Create it with mkdir -p.",
)
UNUSABLE_MOUNT_POINT = Message(
    "unusable-mount-point",
    "can't use the mount point {path}: {reason}",
    "The mount point isn't a directory, can't be read by this user, or a dead mount is on it.",
    "Take a directory of this user. `keepfs unmount` clears a dead mount.",
)
NONEMPTY_MOUNT_POINT = Message(
    "nonempty-mount-point",
    "the mount point {path} isn't empty, and its files would be hidden: take another, or mount"
    " with -o nonempty",
    "There are files in the directory to mount on.",
    "Take another directory, or hide the files for the time of the mount with --nonempty.",
)
NO_FUSE_DEVICE = Message(
    "no-fuse-device",
    "there is no /dev/fuse: load the module (modprobe fuse), or start the container with --device"
    " /dev/fuse --cap-add SYS_ADMIN",
    "The kernel's module fuse isn't loaded, or the container has no /dev/fuse.",
    "Load the module with modprobe fuse, or start the container with --device /dev/fuse --cap-add"
    " SYS_ADMIN --security-opt apparmor:unconfined.",
)
NO_FUSERMOUNT = Message(
    "no-fusermount",
    "there is no fusermount3, which mounts for users: install fuse3",
    "Only root mounts by itself; for other users the program fusermount3 does it.",
    "Install the package fuse3.",
)
FUSE_DEVICE_CLOSED = Message(
    "fuse-device-closed",
    "/dev/fuse is closed to users: chmod 666 /dev/fuse, as fuse3's rule for udev does",
    "This user may not open /dev/fuse.",
    "chmod 666 /dev/fuse, which the package fuse3 does by its rule for udev.",
)
MOUNT_REFUSED = Message(
    "mount-refused",
    "can't mount on {path}: {reason}{hint}",
    "The kernel or fusermount3 refused the mount. In a container it needs the capability"
    " SYS_ADMIN; AppArmor may allow mounts below some directories only; --allow-other needs"
    " user_allow_other in /etc/fuse.conf, except for root.",
    "Follow the hint of the message. keepfs check MOUNTPOINT tests each of these conditions.",
)
ALREADY_MOUNTED = Message(
    "already-mounted",
    "{path} is already mounted, by {owner}",
    "Another keepfs serves this mount point.",
    "Use that mount, or unmount it first: keepfs unmount.",
)
BEING_MOUNTED = Message(
    "being-mounted",
    "{path} is being {done} by process {pid}; wait for it, or end it: kill {pid}",
    "Another keepfs is mounting this mount point, and waits for the services or the API server;"
    " or it was unmounted, and its process stores what is left.",
    "Wait until the process is ready, or has ended. `keepfs status` shows what it does.",
)
MOUNT_ABANDONED = Message(
    "mount-abandoned",
    "the command that mounts has ended before the mount was ready, so the mount ends too",
    "keepfs mount was killed while it waited for its mount, which starts in the background.",
    "Mount again.",
)
MOUNT_OF_OTHER_USER = Message(
    "mount-of-other-user",
    "{path} is the mount of user {owner}; only that user can do this",
    "The run file, the control socket and the state of a mount are open to the user that mounted"
    " alone. fusermount3 unmounts for that user alone.",
    "Run the command as the user that the message names. Root can unmount each mount.",
)
DEAD_MOUNT = Message(
    "dead-mount",
    "the mount on {path} is dead: its process has ended, and programs get ENOTCONN",
    "The process of the mount was killed, so that it could not unmount.",
    "Mount again, which clears it, or clear it with `keepfs unmount`. The next mount restores"
    " what the process has written to the state directory.",
)
STATE_DIR_FAILED = Message(
    "state-dir-failed",
    "can't make the state directory {path}: {reason}; give another with --state-dir",
    "The home directory of the user doesn't exist or can't be written, as that of many services,"
    " or the directory of --state-dir can't be made.",
    "Give a directory of this user with --state-dir, or set HOME or XDG_STATE_HOME.",
)
PATH_IN_MOUNT = Message(
    "path-in-mount",
    "{what} {path} is inside the mount point {mountpoint}: use another path",
    "A directory or file that keepfs itself needs would be in the mount. keepfs would wait for"
    " itself.",
    "Give a path outside the mount point.",
)
MOUNT_DIED = Message(
    "mount-died",
    "the mount process ended without a report; see its log",
    "The process was killed while it started, for example because memory was short.",
    "Read the end of the log in the state directory, and the kernel's log (dmesg).",
)
UNMOUNT_FAILED = Message(
    "unmount-failed",
    "can't unmount {path}: {reason}",
    "The kernel or fusermount3 refused to unmount.",
    "Unmount as the user that mounted, or as root, and end the programs that use the mount.",
)
BUSY = Message(
    "busy",
    "{path} is busy: {holders}",
    "Programs have open files or their working directory in the mount, or something is mounted"
    " in it. Only root sees the processes of other users.",
    "End the programs that the message names, or leave the directory, and unmount again.",
)
NOT_MOUNTED = Message(
    "not-mounted",
    "nothing is mounted on {path}; findmnt -t fuse.keepfs lists keepfs mounts",
    "There is no mount at the path.",
    "findmnt -t fuse.keepfs lists the mounts of keepfs.",
)
OTHER_FILE_SYSTEM = Message(
    "other-file-system",
    "{path} isn't a keepfs mount but a {kind} mount; use umount",
    "Another file system is mounted there.",
    "Use the command of that file system, or umount.",
)
BIND_MOUNTS_LEFT = Message(
    "bind-mounts-left",
    "unmounted {path}, but process {pid} still runs, because bind mounts are left; run: umount"
    " {places}",
    "The mount was bound to other places with mount --bind. Programs may use them.",
    "Unmount these places too. The process then stores what is left, and ends.",
)
PROCESS_STOPPED = Message(
    "process-stopped",
    "can't unmount {path}: its process {pid} is stopped; kill -CONT {pid}, then retry, or use"
    " --force",
    "The process of the mount got SIGSTOP or is traced. It can't store anything.",
    "Continue it with kill -CONT, then unmount. keepfs unmount --force does not wait for it.",
)
FILES_UNSAVED = Message(
    "files-unsaved",
    "unmounted, but {count} of its files could not be stored; the next mount restores them from"
    " the disk. List them: keepfs unsaved list {path}",
    "Keep could not be reached, or refused to store. The bytes are in the state directory.",
    "Mount again when Keep can be reached: the files are restored and stored. keepfs unsaved"
    " export copies one of them.",
)
FILES_LOST = Message(
    "files-lost",
    "unmounted, but these files are LOST: {names}; they could be written neither to Keep nor to"
    " {directory}; see the log of the mount",
    "Neither the services nor the disk of the state directory took the bytes.",
    "Store the files again from their source. Make room in the state directory.",
)
DEAD_MOUNT_CLEARED = Message(
    "dead-mount-cleared",
    "clearing the dead mount that a killed keepfs left on {path}",
    "A keepfs was killed before; its mount answered each access with ENOTCONN.",
    "Nothing: the new mount takes its place. What the killed process had stored is there.",
)
KERNEL_TIMEOUT = Message(
    "kernel-timeout",
    "the kernel aborts a mount that does not answer within {limit} s (sysctl fs.fuse.{name}):"
    " requests fail with ETIMEDOUT after {deadline} s, not after {wanted} s; raise it and mount"
    " again",
    "The kernel's limit on the time of a FUSE request is below --request-timeout.",
    "Raise the sysctl that the message names, or set it to 0, and mount again.",
)
CATALOG_IN_USE = Message(
    "catalog-in-use",
    "another mount uses the catalog {path}: give each mount its own --state-dir",
    "Two mounts were given the same state directory.",
    "Give each mount a --state-dir of its own, or leave the option out.",
)
CATALOG_NEWER = Message(
    "catalog-newer",
    "the catalog {path} was written by a newer keepfs (version {version} of the schema, this one"
    " knows {known})",
    "The names in upload/ were recorded by a later version of keepfs.",
    "Use that version, or mount with another --state-dir.",
)
CATALOG_OF_OTHER_STORE = Message(
    "catalog-of-other-store",
    "the catalog {path} is of blocks in {known}, not in {store}: give another --state-dir",
    "The mount point was used with another cluster or local store before.",
    "Mount with the former store, or give another --state-dir.",
)
CATALOG_UNUSABLE = Message(
    "catalog-unusable",
    "the catalog{path} can't be used: {reason}",
    "The file with the names of upload/ can't be read or written: permissions, a full disk, or"
    " damage.",
    "Make room, or correct the permissions. A damaged file can be replaced from a back-up; the"
    " blocks themselves are in Keep.",
)
NO_CATALOG = Message(
    "no-catalog",
    "there is no catalog {path}: is it the state directory of a mount?",
    "The state directory has no catalog: nothing was mounted with it.",
    "Give the --state-dir that was given to mount.",
)
CATALOG_ENTRY_DAMAGED = Message(
    "catalog-entry-damaged",
    "the catalog {path}: the entry {number}, {name}, is damaged: {reason}; the others are not"
    " affected",
    "The record of one file of upload/ in the catalog can't be read. Reads of it fail with EIO.",
    "Remove the file and store it again. Check the disk of the state directory.",
)
CATALOG_NOT_WRITTEN = Message(
    "catalog-not-written",
    "the catalog is not checkpointed: {reason}",
    "The disk of the state directory is full or fails. The log of the catalog grows.",
    "Make room, or check the disk.",
)
