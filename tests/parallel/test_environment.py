"""What virtual devices of the CPU need. Oracle: what XLA reads."""

from sdtt_jax.parallel.environment import threads_to_wait_in, virtual_devices


def test_several_devices_of_a_process_have_threads_to_wait_in(monkeypatch):
    """With fewer threads they deadlock, rarely: a device waits in a collective of each concurrent loop."""
    monkeypatch.delenv("PJRT_NPROC", raising=False)
    assert virtual_devices(8)["PJRT_NPROC"] == "64"
    assert "PJRT_NPROC" not in virtual_devices(1)
    monkeypatch.setenv("PJRT_NPROC", "100")
    assert "PJRT_NPROC" not in virtual_devices(8)


def test_a_command_gives_them_where_its_flags_ask_for_several_devices():
    flag = "--xla_force_host_platform_device_count="
    assert threads_to_wait_in({"XLA_FLAGS": f"--xla_a {flag}8 {flag}4"}) == {"PJRT_NPROC": "32"}
    for flags in ("", f"{flag}1", f"{flag}many", flag):
        assert threads_to_wait_in({"XLA_FLAGS": flags}) == {}
