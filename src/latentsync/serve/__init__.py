"""The HTTP service: `latentsync serve`. Routes over the job core; it loads no network itself."""
