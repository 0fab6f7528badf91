import importlib.util


def test_project_root_is_not_on_the_path():
    assert importlib.util.find_spec("nodes") is None
    import srpo_core.step

    assert srpo_core.step


def test_up(host):
    print(host.get("/workflow_templates"), host.memory() / 1e6)
    print(host.log)
