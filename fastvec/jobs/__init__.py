"""Embedding jobs of any size: into one file, or into a folder of shards that several processes embed.

- `embedding` has `fastvec.embed`, and decides which;
- `sharded` finds the shards that are missing, has them embedded, and publishes the manifest;
- `record` is what all shards of a job share;
- `worker` embeds one shard after another with one encoder;
- `processes` runs workers in processes of this machine, each of which is a `worker_process`; `devices` says which;
- `ray_data` runs workers in the actors of a Ray cluster, each of which is a `ray_actor`.
"""
