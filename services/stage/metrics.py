"""The stage's Prometheus metrics."""

from stagemesh.metrics import counter, gauge, histogram

SESSIONS = gauge("stagemesh_stage_sessions", "Sessions held by replicas of a stage", ("model", "stage"))
SESSION_ERRORS = counter(
    "stagemesh_stage_session_errors_total", "Sessions that failed on a stage", ("model", "stage")
)
STEP_SECONDS = histogram(
    "stagemesh_stage_pass_seconds",
    "Time of a pass on a stage, by part: queue, compute, encode, network",
    ("model", "stage", "part"),
)
TOKENS = counter("stagemesh_stage_tokens_total", "Tokens that went through a stage's head", ("model",))
BAD_FRAMES = counter("stagemesh_stage_bad_frames_total", "Frames refused because they could not be read")
REPLICAS = gauge("stagemesh_stage_replicas_ready", "Replicas of this node that are ready")
FRAMES = counter(
    "stagemesh_stage_tensor_frames_total",
    "Tensors sent to other replicas by lane: shared (memory of this host), bytes (in the stream), "
    "fallback (in the stream, since the shared memory was full)",
    ("lane",),
)
