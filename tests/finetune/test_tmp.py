from training.recipe import load
from tests.finetune.conftest import *
def test_x(planned):
    for f in sorted((ROOT/"recipes").glob("*.yaml")):
        for v in [None,*load(f).get("variants",{})]:
            st=planned(f.stem,*([v] if v else [])); print(f.stem,v,[(s,round(p.gib,1)) for s,(r,p) in st.items()])
