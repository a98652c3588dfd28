"""Property tests here run 100 examples each; ``SUPERDUPER_TEST_EXAMPLES=10000`` searches longer."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "documents",
    max_examples=int(os.environ.get("SUPERDUPER_TEST_EXAMPLES", "100")),
    deadline=None,  # a busy machine is no defect
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.load_profile("documents")
