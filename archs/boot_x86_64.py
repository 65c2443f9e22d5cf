# SPDX-License-Identifier: GPL-2.0-or-later
"""What one boot of an x86-64 kernel decided about CPU bugs, and which mitigations are in force.

Sources: arch/x86/kernel/cpu/bugs.c; asm/cpufeatures.h.
"""

from __future__ import annotations

from collections.abc import Mapping

from archs.environment import Boot, Environment
from archs.numbers import Numbers
from archs.passes.x86_64.ideal_nops import BY_VENDOR, K8, OPTION
from archs.passes.x86_64.returns import ITS_RETURN_THUNK, RETURN_THUNK

# X86_FEATURE_* of Linux 6.12, by word and bit (asm/cpufeatures.h), called as /proc/cpuinfo calls
# them, or where it does not show them after the macro; "-" is no feature.
_WORDS = {
    0: "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts "
    "acpi mmx fxsr sse sse2 ss ht tm ia64 pbe",
    1: "- - - - - - - - - - - syscall - - - - - - - mp nx - mmxext - - fxsr_opt pdpe1gb rdtscp - lm "
    "3dnowext 3dnow",
    3: "cxmmx k6_mtrr cyrix_arr centaur_mcr k8 zen5 p3 p4 constant_tsc up art arch_perfmon pebs bts "
    "syscall32 sysenter32 rep_good amd_lbr_v2 clear_cpu_buf acc_power nopl always xtopology "
    "tsc_reliable nonstop_tsc cpuid extd_apicid amd_dcm aperfmperf rapl nonstop_tsc_s3 "
    "tsc_known_freq",
    4: "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid "
    "dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand "
    "hypervisor",
    6: "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop "
    "skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc "
    "perfctr_llc mwaitx",
    7: "ring3mwait cpuid_fault cpb epb cat_l3 cat_l2 cdp_l3 tdx_host_platform hw_pstate "
    "proc_feedback xcompacted pti kernel_ibrs rsb_vmexit intel_ppin cdp_l2 msr_spec_ctrl ssbd mba "
    "rsb_ctxsw perfmon_v2 use_ibpb use_ibrs_fw spec_store_bypass_disable ls_cfg_ssbd ibrs ibpb "
    "stibp zen l1tf_pteinv ibrs_enhanced msr_ia32_feat_ctl",
    8: "tpr_shadow flexpriority ept vpid coherency_sfw_no - - - - - - - - - - vmmcall xenpv ept_ad "
    "vmcall vmw_vmmcall pvunlock vcpupreempt tdx_guest",
    9: "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm "
    "zero_fcs_fds mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt "
    "avx512pf avx512er avx512cd sha_ni avx512bw avx512vl",
    10: "xsaveopt xsavec xgetbv1 xsaves xfd",
    11: "cqm_llc cqm_occup_llc cqm_mbm_total cqm_mbm_local fence_swapgs_user fence_swapgs_kernel "
    "split_lock_detect per_thread_mba sgx1 sgx2 entry_ibpb rrsba_ctrl retpoline retpoline_lfence "
    "rethunk unret use_ibpb_fw rsb_vmexit_lite sgx_edeccssa call_depth msr_tsx_ctrl smba bmec "
    "user_shstk srso srso_alias ibpb_on_vmexit apic_msrs_fence zen2 zen3 zen4 zen1",
    12: "- - - - avx_vnni avx512_bf16 - cmpccxadd arch_perfmon_ext - fzrm fsrs fsrc - - - - fred lkgs "
    "wrmsrns - amx_fp16 - avx_ifma - - lam",
    13: "clzero irperf xsaveerptr - rdpru - - - - wbnoinvd - - amd_ibpb - amd_ibrs amd_stibp - "
    "amd_stibp_always_on - - - - - amd_ppin amd_ssbd virt_ssbd amd_ssb_no cppc amd_psfd btc_no "
    "amd_ibpb_ret brs",
    14: "dtherm ida arat - pln - pts hwp hwp_notify hwp_act_window hwp_epp hwp_pkg_req - - - "
    "hwp_highest_perf_change - - - hfi",
    15: "npt lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid decodeassists - - pausefilter - "
    "pfthreshold avic - v_vmsave_vmload vgif - x2avic - v_spec_ctrl - - - - vnmi - - "
    "svme_addr_chk",
    16: "- avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni "
    "avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - "
    "movdiri movdir64b enqcmd sgx_lc",
    17: "overflow_recov succor - smca",
    18: "- - avx512_4vnniw avx512_4fmaps fsrm - - - avx512_vp2intersect srbds_ctrl md_clear "
    "rtm_always_abort - tsx_force_abort serialize hybrid_cpu tsxldtrk - pconfig arch_lbr ibt - "
    "amx_bf16 avx512_fp16 amx_tile amx_int8 spec_ctrl intel_stibp flush_l1d arch_capabilities "
    "core_capabilities spec_ctrl_ssbd",
    19: "sme sev vm_page_flush sev_es sev_snp - - - - v_tsc_aux sme_coherent - - - debug_swap - - - - "
    "- - - - - - - - - svsm - hv_inuse_wr_allowed",
    20: "no_nested_data_bp wrmsr_xx_base_ns lfence_rdtsc - - verw_clear null_sel_clr_base - autoibrs "
    "no_smm_ctl_msr - - - - - - - - - - - - - - - - - sbpb ibpb_brtype srso_no",
    21: "amd_lbr_pmc_freeze clear_bhb_loop bhi_ctrl clear_bhb_hw clear_bhb_loop_on_vmexit fast_cppc "
    "indirect_thunk_its - - - - tsa_sq_no tsa_l1_no clear_cpu_buf_vm",
    22: "f00f fdiv coma tlb_mmatch apic_c1e 11ap fxsave_leak clflush_monitor sysret_ss_attrs - "
    "null_seg swapgs_fence bug_monitor amd_e400 cpu_meltdown spectre_v1 spectre_v2 "
    "spec_store_bypass bug_l1tf mds msbds_only swapgs taa itlb_multihit srbds mmio_stale_data "
    "mmio_unknown retbleed eibrs_pbrsb smt_rsb gds tdx_pw_mce",
    23: "bug_srso div0 rfds bhi ibpb_no_ret its its_native_only - - tsa",
}
FEATURES = {
    name: 32 * word + bit
    for word, names in _WORDS.items()
    for bit, name in enumerate(names.split())
    if name != "-"
}
# Where other versions have other numbers, and where theirs mean something else (asm/cpufeatures.h
# as Debian's headers have it). What an older version lacks, and has nothing at the number, is not here.
_OLD = {
    "flexpriority": 258,
    "ept": 259,
    "vpid": 260,
    "vnmi": 257,
    "lfence_rdtsc": 114,
} | dict.fromkeys(("zen5", "tdx_host_platform", "sgx_edeccssa"))
_NEW = {"its": 743, "its_native_only": 744, "indirect_thunk_its": 682} | dict.fromkeys(
    ("p3", "sysenter32")
)
NUMBERS = Numbers(
    FEATURES,
    {
        (5, 10): {
            **_OLD,
            "clear_cpu_buf": 371,
            "msr_tsx_ctrl": 370,
            "gds": 733,
            "call_depth": None,
            "coherency_sfw_no": None,
        },
        (6, 1): {
            **_OLD,
            "clear_cpu_buf": 370,
            "coherency_sfw_no": 261,
            "indirect_thunk_its": 677,
            "fast_cppc": None,
        },
        (7, 2): _NEW,
        (7, 3): _NEW,  # -rc7
    },
)
# Bugs that are called like a feature.
_BUGS = {"monitor": "bug_monitor", "l1tf": "bug_l1tf", "srso": "bug_srso"}

# CPU models of an emulator (QEMU's TCG), as /proc/cpuinfo has them, for boots that did not keep it:
# vendor and family; flags; bugs.
_MODELS = {
    "max": (
        ("AuthenticAMD", "15"),
        (
            "fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush acpi mmx"
            " fxsr sse sse2 ss syscall nx mmxext pdpe1gb rdtscp lm 3dnowext 3dnow rep_good nopl "
            "xtopology cpuid extd_apicid pni pclmulqdq monitor ssse3 fma cx16 sse4_1 sse4_2 movbe"
            " popcnt aes xsave avx f16c rdrand hypervisor lahf_lm svm cr8_legacy abm sse4a "
            "3dnowprefetch vmmcall fsgsbase bmi1 avx2 smep bmi2 erms mpx adx smap clflushopt clwb"
            " xsaveopt xgetbv1 arat npt vgif umip pku ospke vaes la57"
        ),
        "fxsave_leak sysret_ss_attrs null_seg swapgs_fence amd_e400 spectre_v1 spectre_v2",
    ),
    "Skylake-Server": (
        ("GenuineIntel", "6"),
        (
            "fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr"
            " sse sse2 ht syscall nx pdpe1gb rdtscp lm constant_tsc rep_good nopl xtopology cpuid"
            " pni pclmulqdq ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt aes xsave avx f16c rdrand "
            "hypervisor lahf_lm abm pti fsgsbase bmi1 avx2 smep bmi2 erms adx smap clflushopt "
            "clwb xsaveopt xgetbv1 arat pku ospke"
        ),
        (
            "cpu_meltdown spectre_v1 spectre_v2 spec_store_bypass l1tf mds swapgs itlb_multihit "
            "mmio_stale_data retbleed gds bhi its"
        ),
    ),
    "EPYC": (
        ("AuthenticAMD", "23"),
        (
            "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx "
            "fxsr sse sse2 ht syscall nx mmxext fxsr_opt pdpe1gb rdtscp lm rep_good nopl "
            "xtopology cpuid extd_apicid pni pclmulqdq ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt "
            "aes xsave avx f16c rdrand hypervisor lahf_lm cmp_legacy svm cr8_legacy abm sse4a "
            "misalignsse 3dnowprefetch osvw vmmcall fsgsbase bmi1 avx2 smep bmi2 rdseed adx smap "
            "clflushopt sha_ni xsaveopt xsavec xgetbv1 arat npt"
        ),
        (
            "sysret_ss_attrs swapgs_fence spectre_v1 spectre_v2 spec_store_bypass "
            "retbleed smt_rsb srso div0"
        ),
    ),
}

# What PREEMPT_DYNAMIC makes of four static calls, by `preempt=` (kernel/sched/core.c:
# __sched_dynamic_update); Debian's default is voluntary.
_FULL = (
    "__static_call_return0,__static_call_return0,preempt_schedule_thunk,"
    "preempt_schedule_notrace_thunk"
)
_PREEMPTION = {
    mode: dict(
        zip(
            ("cond_resched", "might_resched", "preempt_schedule", "preempt_schedule_notrace"),
            functions.split(","),
            strict=True,
        )
    )
    for mode, functions in {
        "none": "__cond_resched,__static_call_return0,,",
        "voluntary": "__cond_resched,__cond_resched,,",
        "full": _FULL,
        "lazy": _FULL,
    }.items()
}
# Mitigations that decide about more than alternatives.
_DECIDED = ("retpoline", "retpoline_lfence", "rethunk", "call_depth", "indirect_thunk_its")
# The local APIC without x2APIC: interrupts go to one CPU after the other
# (arch/x86/kernel/apic/apic_flat_64.c).
# The instruction of WARN() (since 7.0).
_WARNING = {"WARN_trap": "__WARN_trap"}
_APIC = {
    "apic_call_send_IPI_mask": "default_send_IPI_mask_sequence_phys",
    "apic_call_send_IPI_self": "default_send_IPI_self",
}


def environment(boot: Boot) -> Environment:
    """Return what a boot means for modules: what arch/x86/kernel/cpu/bugs.c would select.

    /proc/cpuinfo shows features and bugs; the mitigations in force follow from the bugs and
    the command line, in the kernel's order, since one depends on another.
    """
    cpu, options = boot.cpu, boot.options
    if not cpu and boot.model in _MODELS:
        (vendor, family), flags, known = _MODELS[boot.model]
        cpu = {"vendor_id": vendor, "cpu family": family, "flags": flags, "bugs": known}
    features = set(cpu.get("flags", "").split())
    bugs = set(cpu.get("bugs", "").split())
    features |= {_BUGS.get(bug, bug) for bug in bugs}
    features.add("always")
    if "sse2" in features:  # init_amd, init_intel: LFENCE is made to serialise
        features.add("lfence_rdtsc")
    thunk = RETURN_THUNK
    if options.get("mitigations") != "off":
        thunk = _mitigate(cpu, features, bugs, options, boot.vulnerabilities)
    if boot.return_thunk:  # which of them depends on the version, too
        thunk = boot.return_thunk.removeprefix("__pi_")  # a second name
        if thunk != RETURN_THUNK:
            features.add("rethunk")
    if boot.capabilities is not None:  # it is known, and no policy of ours counts
        numbers = NUMBERS.of(boot.version)
        decided = {name for name in _DECIDED if name in numbers}
        features -= decided
        features |= {name for name in decided if numbers[name] in boot.capabilities}
    chosen = options.get("preempt", "")
    mode = _PREEMPTION[chosen if chosen in _PREEMPTION else _preemption(boot)]
    return Environment(
        features=frozenset(features),
        options={"return_thunk": thunk, **_nops(boot, cpu)},
        possible_cpus=boot.possible_cpus,
        symbols=boot.symbols,
        static_calls={
            name: boot.symbols.get(function, 0)
            for name, function in (mode | _APIC | _WARNING).items()
            if not function or function in boot.symbols
        },
    )


def _nops(boot: Boot, cpu: Mapping[str, str]) -> Mapping[str, str]:
    """Return which NOPs a kernel chose, where it did (arch_init_ideal_nops, before 5.13)."""
    old = cpu.get("vendor_id") == "AuthenticAMD" and int(cpu.get("cpu family", 0)) <= 0xF
    return {OPTION: K8} if BY_VENDOR.at(boot.version) and old else {}


def _preemption(boot: Boot) -> str:
    """Return the mode of preemption that a kernel was configured for."""
    names = {
        "CONFIG_PREEMPT_RT": "full",
        "CONFIG_PREEMPT_LAZY": "lazy",
        "CONFIG_PREEMPT": "full",
        "CONFIG_PREEMPT_NONE": "none",
    }
    found = (mode for name, mode in names.items() if boot.config.get(name) == "y")
    return next(found, "voluntary")


def _mitigate(
    cpu: Mapping[str, str],
    features: set[str],
    bugs: set[str],
    options: Mapping[str, str],
    vulnerabilities: Mapping[str, str],
) -> str:
    """Add the mitigations in force to `features`; return the return thunk in force."""
    is_intel, family = cpu.get("vendor_id") == "GenuineIntel", int(cpu.get("cpu family", 0))
    thunk = RETURN_THUNK
    spectre = "off" if "nospectre_v2" in options else options.get("spectre_v2", "auto")
    retbleed = options.get("retbleed", "auto").split(",")[0]
    # spectre_v2_select_mitigation
    if "spectre_v2" not in bugs and spectre != "on":
        spectre = "off"
    if spectre in ("auto", "on"):
        enhanced = "ibrs_enhanced" in features
        kernel_ibrs = is_intel and {"retbleed", "ibrs"} <= (bugs | features)
        kernel_ibrs = kernel_ibrs and retbleed not in ("off", "stuff")
        spectre = "eibrs" if enhanced else "ibrs" if kernel_ibrs else "retpoline"
    if "retpoline" in spectre or spectre == "eibrs,lfence":
        features.add("retpoline")
        if spectre.endswith(("lfence", "amd")):
            features.add("retpoline_lfence")
    if spectre == "ibrs":
        features.add("kernel_ibrs")
    if spectre != "off":
        features |= {"rsb_ctxsw"} if "ibrs_enhanced" in features else {"rsb_ctxsw", "rsb_vmexit"}
    if {"ibrs", "ibpb"} & features:
        features.add("msr_spec_ctrl")
    if "ibpb" in features and spectre != "off":
        features.add("use_ibpb")
    # retbleed_select_mitigation
    stuffing = False
    if "retbleed" in bugs and retbleed != "off":
        stuffing = retbleed == "stuff" and spectre == "retpoline" and is_intel
        if stuffing:
            features |= {"rethunk", "call_depth"}
            thunk = "call_depth_return_thunk"
        elif not is_intel and retbleed == "ibpb":
            features |= {"entry_ibpb", "ibpb_on_vmexit"}
        elif not is_intel:
            features |= {"rethunk", "unret"}
            thunk = "retbleed_return_thunk"
    # its_select_mitigation
    its = options.get("indirect_target_selection", "on")
    exposed = "its" in bugs and its != "off" and spectre != "off" and not stuffing
    if exposed and "retpoline_lfence" not in features:
        features.add("rethunk")
        if "retpoline" not in features:
            features.add("indirect_thunk_its")
        thunk = ITS_RETURN_THUNK
    # srso_select_mitigation; Zen 1 and 2 without a second thread may need nothing
    srso = options.get("spec_rstack_overflow", "safe-ret")
    says = vulnerabilities.get("spec_rstack_overflow", "Safe RET")
    if "srso" in bugs and srso == "safe-ret" and "safe ret" in says.lower():
        alias = family == 0x19
        features |= {"rethunk", "unret", "srso_alias" if alias else "srso"}
        thunk = "srso_alias_return_thunk" if alias else "srso_return_thunk"
    # bhi_select_mitigation: retpolines are enough
    if "bhi" in bugs and "retpoline" not in features:
        features |= {"clear_bhb_loop", "clear_bhb_loop_on_vmexit"}
    # mds, taa, mmio and rfds share one way to clear buffers
    if {"mds", "taa", "mmio_stale_data", "rfds"} & bugs:
        features.add("clear_cpu_buf")
    if "l1tf" in bugs:
        features.add("l1tf_pteinv")
    return thunk
