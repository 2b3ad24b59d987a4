"""The web page: one page over `jobs`, for people who never open a terminal. It loads no network but a face finder; jobs run in worker processes."""
