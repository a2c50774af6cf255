"""Lower bounds on the makespan of every order."""

from offload.schedule.instance import Instance


def simple_bound_s(instance: Instance) -> float:
    """No faster than the device alone, nor than the uplink with its shortest lead and tail.

    The first upload waits for its layer's compute; something uploads after the last compute of
    those that a cut point needs. O(V + E).
    """
    cuts = instance.cuts
    tail_s = instance.server_s + instance.download_s
    server_s = sum(job.compute_s for job in instance.server_jobs)
    if not cuts:
        return max(instance.total_compute_s, server_s + tail_s)
    lead_s = float(instance.times_s[0, list(cuts)].min())
    uplink_s = lead_s + instance.total_upload_s + tail_s
    return max(instance.total_compute_s, uplink_s, server_s + tail_s)
