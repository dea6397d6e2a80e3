"""What tests set for the nodes of a Ray cluster that they start on this computer."""

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # else it ends workers when other programs fill the memory
    # A node that was killed refuses to answer, and after five such looks it is known to be dead: 15 s by Ray's own period. One
    # that is only slow is still waited for.
    "RAY_health_check_period_ms": "500",
    "RAY_worker_niceness": "0",  # Ray's own is 15, which among other tests is hardly any time
    "RAY_AUTH_MODE": "token",  # as docs/cluster.md says
    "RAY_AUTH_TOKEN": "of-the-tests-and-of-nobody-else-0",
}
