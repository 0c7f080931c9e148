"""How fast keepfs is: figures as ratios to baselines that are measured in the same run.

    scripts/bench                     everything but what takes long; some twenty minutes
    scripts/bench reading writing     some groups only
    scripts/bench growth memory       what takes long: cost as work grows, peak memory
    scripts/bench --like-keepstore    the same with services that do what keepstores do
    scripts/bench --like-keepstores-elsewhere    and as if they had processors of their own
    scripts/bench --services URL ...  the same with any Keep services; $ARVADOS_API_TOKEN

How it is done:

- A machine's absolute speed says little, and changes from minute to minute where
  others share it. So each figure has baselines, measured in turn with it (A B A B),
  and the ratio of the medians is what counts: how many times as fast keepfs is.
- The block server is in C, sends from memory and hashes nothing. It is faster than
  all that is measured with it; the group `services` says how fast, as curl sees it,
  beside what MD5 takes. Where curl gets a block faster than MD5 can be computed,
  no client that verifies can come near curl: see "curl | md5sum" then, which hashes
  in a second process, or measure with `--like-keepstore`.
- The targets are meant for keepstores, which hash every block they send and get. With
  `--like-keepstore` the services are three programs in Go (keepstore.go), which do what
  keepstores do with the library that these use, with files on the local disk, on the
  processors that all share here. It leaves out routing, metrics, limits and several
  volumes, and takes a fixed processor time for them, in times of MD5 of a block. These times,
  of a GET and of a PUT, are the only fitted figures: where MD5 of 64 MiB takes 106 ms, a GET
  of 4 KiB takes 0.43 ms over a bare socket, and a PUT of two copies 1.7 ms with keepfs, as
  measured of three keepstores (Go, signing on, files on a local disk). docs/performance.md
  has the other figures of these keepstores and what keepstore.go predicts for them.
- With `--like-keepstores-elsewhere` the block server takes the time alone: for each request
  so many times as long as MD5 as was measured of a keepstore.
- curl's time is what curl says of its transfers, without its own start. Of two at
  once the slower counts.
- Cold means: fetched. The services count requests, and a trial that made too few is
  an error. The kernel's pages are dropped with posix_fadvise. All that is read or
  written is compared with its MD5, outside the timed part; wrong bytes end the run.
- Clients run in processes of their own (`worker`), mounts are processes anyway. So
  the processor seconds (median of one trial) and the peak of resident memory (reset
  before each trial) are keepfs's alone. tmpfs and memfs, the file system in C, are
  read and written by the same code as the mount.
- Services of ours are disk services that an API server lists, in a process of its
  own, so every client puts the copies of a block at once, as in a cluster. Services
  given by `--services` are proxies to a client, and get one copy after the other.
- "busy" is how much of all processors was used in the timed part, by anybody. Near
  100 % nothing here goes faster, unless somebody uses less.
- A virtual machine's host may take back free memory, and whoever is given it next
  waits for it. So memory is touched and given back just before a trial, and the
  pages of a cold file are dropped before the next is read.
- arv-mount shows collections, so the API server has one of each trial's blocks.
  arv-mount's loading of the manifest isn't timed. Both its caches are measured: on
  the disk, which is its default, and in memory as ours is.

Modules: `build` compiles the programs in C and Go, `services` starts the services or
takes what services are given, `rig` holds what a run has, `measure` measures, and
`baselines` are what keepfs is compared with. `inprocess` (with `worker`), `reading`,
`arvmount`, `writing`, `names`, `starting`, `growth` and `memory` are the groups,
`mounting` mounts for them, `report` prints, writes and draws.
"""
