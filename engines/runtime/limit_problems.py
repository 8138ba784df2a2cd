"""What of a request a server's limits do not allow."""

from engines.runtime.answer import Request
from engines.runtime.scheduler_limits import SchedulerLimits


def limit_problems(limits: SchedulerLimits, request: Request, deadline_seconds: float | None) -> list[str]:
    """What of a request exceeds a server's limits, as sentences."""
    problems = []
    longest = limits.max_tokens_per_request
    if longest is not None and request.config.max_new_tokens > longest:
        problems.append(
            f"max_new_tokens is {request.config.max_new_tokens}, this server allows {longest} at most."
        )
    largest = limits.max_patches_per_picture
    # Of a video, each temporal step is a segment of its own: an engine never sees its steps as one.
    found = max((grid[1] * grid[2] for grid in request.inputs.grids), default=0)
    if largest is not None and found > largest:
        problems.append(f"a picture has {found} patches, this server allows {largest}. Send it smaller.")
    if deadline_seconds is not None and not deadline_seconds > 0:
        problems.append(f"deadline_seconds must be more than 0, found {deadline_seconds}.")
    return problems
