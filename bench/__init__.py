"""How fast keepfs is: figures as ratios to baselines that are measured in the same run.

A machine's absolute speed says little, and changes from minute to minute where
others share it. So each figure has baselines, measured in turn with it (A B A B),
and what counts is the ratio of the medians. What is read is verified, outside the
timed part; where a block must have been fetched, the services' own counts say so.

Rooms: `build` compiles the two C programs, `services` starts the block server or
takes the services given, `measure` does the measuring, `baselines` has what keepfs
is compared with, `inprocess` and `worker` measure clients in processes of their own,
`mounting` mounts, `reading`, `writing`, `names` and `starting` measure the mount,
`report` prints.

There is no arv-mount among the baselines: it needs an API server.
"""
