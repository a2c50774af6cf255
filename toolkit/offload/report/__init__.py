"""Show a result to a person: tables, Gantt charts, traces."""
