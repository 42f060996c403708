"""Models, texts, other engines and quality tasks, for the benchmarks of whole encoders.

- `models` saves decoders with random weights and reads length mixes of texts from a corpus.
- `engines` loads the engines that fastvec is compared with; `gguf_file` converts a model for one of them, llama.cpp.
- `random_decoder` makes decoders with random weights on a device, `implementations` runs them as `benchmarks.forward`
  compares them, and `device_timing` times passes.
- `race` runs the contestants of `benchmarks.embed` with a time limit; `contestant` runs one engine, or fastvec, in its
  own process; `energy` reads the energy counters of processors and GPUs.
- `quality_tasks` reads the public tasks that `benchmarks.quality` judges models on.
"""
