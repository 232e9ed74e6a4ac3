import subprocess
import sys


def test_choosing_the_mathematics_imports_no_torch() -> None:
    code = """
import sys
import st.diffusion.objective
from st.diffusion import densities, distances, noise, path, samplers, shift, target, weightings
from st.registrar import Registrar

registrar = Registrar()
for module in (densities, distances, samplers, weightings):
    module.register(registrar)

table = path.DiscretePath(path.zero_terminal_snr(path.DiscretePath.of_betas(path.cosine_betas()).alphas_cumprod))
st.diffusion.objective.Objective(
    table,
    target.epsilon,
    densities.Cubic(densities.CubicOptions(knots=(0, 1, 2))),
    weightings.MinSnr(weightings.MinSnrOptions()),
    distances.Huber(distances.RobustOptions()),
    shift.shift_rule(shift.ShiftOptions(), len, float),
).problems()

heavy = {"torch", "numpy", "diffusers", "transformers", "accelerate", "scipy"} & set(sys.modules)
assert not heavy, heavy
"""

    subprocess.run([sys.executable, "-c", code], check=True)
