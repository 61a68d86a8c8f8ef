"""How long a prediction takes, roughly: so that a launch predicts its run by itself only where nobody waits for it.

estimated_s(config)         # 7.5

Measured on two cores that did nothing else (2026-11-30), six runs of one rank, 3 to 50 steps and 1 to 168 chunks: what
it takes to begin and to build the networks, a step that is played back, and a chunk of frames through the VAE.
Estimates were from 17 % too short to 31 % too long. It takes no longer for more tokens, except where they come in
chunks.
"""

from math import ceil

from ray_memprof.config.run_config import RunConfig
from ray_memprof.config.wan_keys import wan_options
from ray_memprof.predictor.alike import alike
from ray_memprof.predictor.processes import NUM_PROCESSES
from ray_memprof.predictor.sizes import latent_shape, num_slabs

_BEGIN_S, _STEP_S, _CHUNK_S = 5.0, 0.22, 0.07


def estimated_s(config: RunConfig) -> float:
    """Seconds that a prediction of a run of wan takes."""
    num_waves = ceil(len(alike(config)) / NUM_PROCESSES)
    num_steps = wan_options(config).sample_steps * config.optimization.batch_size
    num_chunks = latent_shape(config)[1] * num_slabs(config) * config.optimization.batch_size
    return num_waves * (_BEGIN_S + _STEP_S * num_steps + _CHUNK_S * num_chunks)
