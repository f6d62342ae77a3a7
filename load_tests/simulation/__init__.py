"""How long do jobs wait while the workers are scaled by what waits? `python -m load_tests.simulation`

A discrete-event simulation of the queue and of Kubernetes around it: jobs arrive by a load curve (a
Poisson process of changing rate), wait in one line, and run in slots; a pod has several. Every polling
interval the scaler looks at the demand, as KEDA does, and asks for pods, which need time to start and are
taken away no sooner than allowed. Everything is drawn from one seed: the same seed, the same figures.
Writes `results/simulation.md`, `.json` and a picture of each scenario.
"""
