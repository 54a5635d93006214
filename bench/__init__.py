"""The bench: how fast inspections are, beside other ways to the same results and beside what the machine can do.

    make bench         all of it, about 15 minutes on a quiet machine of two cores
    make bench-quick   G and N with a quarter of the cells, about 2 minutes

    __main__        runs all of the below, each in a process of its own; prints a table and, last, one JSON line
    workloads       what is asked for (G, N, C), and how much arithmetic its results need
    roofline        how much arithmetic this machine does in a second, on the model's own matrices
    engine          a workload through the public call, timed, its memory watched, checked against the reference
    baselines       the official ways, on plain transformers
    peers_nnterp    nnterp's patchscope_generate, in an environment of its own (.venv-peers)
    first_text      how long a user of the command waits for the first text
    curve           how the cost of a cell grows with everything that can grow
    memory          the peak of a process, and nothing before it

All ratios are within one run: figures of two machines, or of a busy one and a quiet one, say nothing of each other.
"""
