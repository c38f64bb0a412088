# ---
# jupyter:
#   accelerator: GPU
#   colab:
#     gpuType: T4
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Variational inference
#
# > **You will be able to.** do things. See [Blei and others (2017)](https://doi.org/10.1080/01621459.2017.1285773).

# %% tags=["remove-cell"]
import importlib.util

if importlib.util.find_spec("lib") is None:  # on Colab
    get_ipython().run_line_magic(
        "pip", "install -q git+https://github.com/your-name/seeing-through-models"
    )

# %%
import matplotlib.pyplot as plt

from lib.book import claim, claims_table, figure, provenance, show_source, start
from lib.checks import reject

generator = start(seed=7)

# %%
claim("KL gap at n = 10", 0.0448, high=0.05, because="closed form")
fig, ax = plt.subplots()
ax.plot([1, 2, 3])
figure(fig, alt="A line that rises from one to three over two steps.", caption="The line rises by $\\Delta = 1$ each step.")
show_source(reject, test="tests/conftest.py::device")

# %% [markdown]
# The gap is [0.04](#kl-gap-at-n-10) nats, by `lib.checks.reject`.

# %%
claims_table()
provenance()
