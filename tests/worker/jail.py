"""What a process gives up before it runs somebody else's code. Nothing here needs root; each part
that the system does not have is left out, and `lock` says which ones are in force.

    limits      everywhere but Windows: CPU time, memory, file size, open files, no core dumps
    namespaces  Linux: no network, and no other process can be seen or signalled
    landlock    Linux 5.13: reads only Python and its packages and the student's own folder, writes
                nothing, starts no program
    seccomp     Linux on x86-64 and ARM: no new processes or threads, no sockets, no signals, no
                tracing of others, no changes to priorities or to files' modes and owners, no
                watching of folders
"""

import ctypes
import os
import platform
import struct
import sys

CPU_SECONDS, MEMORY_BYTES, FILE_BYTES, OPEN_FILES = 120, 6 * 2**30, 2**20, 64


def limit_resources():
    import resource

    limits = {"RLIMIT_CPU": CPU_SECONDS, "RLIMIT_AS": MEMORY_BYTES, "RLIMIT_FSIZE": FILE_BYTES,
              "RLIMIT_NOFILE": OPEN_FILES, "RLIMIT_CORE": 0}
    for name, value in limits.items():
        if name == "RLIMIT_AS" and sys.platform == "darwin":
            continue  # macOS has the constant and does not keep to it
        resource.setrlimit(getattr(resource, name), (value, value))


def check(result, call):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def library():
    return ctypes.CDLL(None, use_errno=True)


# ---- Namespaces ---------------------------------------------------------------------------------

CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (1 << bit for bit in (27, 28, 29, 30))
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP = 1, 38, 22


def enter_namespaces():
    """The process that goes on is the first one of a new process namespace: when it ends, so does
    all that it started. The process that called stays outside, waits, and ends with it."""
    check(library().unshare(CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC), "unshare")
    child = os.fork()
    if child:
        os.closerange(0, 1024)
        status = os.waitpid(child, 0)[1]
        os._exit(1 if status else 0)
    library().prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0)


# ---- Landlock (Documentation/userspace-api/landlock.rst of the kernel) --------------------------

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
WRITE_FILE, READ_FILE, READ_DIR = 1 << 1, 1 << 2, 1 << 3
RIGHTS_OF_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # how many rights on files it knows


def restrict_files(readable):
    """Allow reading below these paths, and nothing else."""
    syscall = library().syscall
    abi = check(syscall(CREATE_RULESET, None, 0, 1), "Landlock")
    files = (1 << RIGHTS_OF_ABI[min(abi, 5)]) - 1
    network, scope = 3 if abi >= 4 else 0, 3 if abi >= 6 else 0
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    attributes = struct.pack("QQQ", files, network, scope)[:size]
    rules = check(syscall(CREATE_RULESET, attributes, len(attributes), 0), "Landlock")
    for path in readable:
        if os.path.exists(path):
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            allowed = READ_FILE | (READ_DIR if os.path.isdir(path) else 0)
            allowed |= WRITE_FILE if path == os.devnull else 0
            rule = struct.pack("=Qi", allowed, descriptor)
            check(syscall(ADD_RULE, rules, 1, rule, 0), f"Landlock on {path}")
            os.close(descriptor)
    check(library().prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    check(syscall(RESTRICT_SELF, rules, 0), "Landlock")
    os.close(rules)


def python_paths():
    """What Python needs to import more of itself and of its packages."""
    return {sys.prefix, sys.base_prefix, *filter(os.path.isabs, sys.path), "/usr/lib", "/usr/lib64",
            "/lib", "/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/etc/localtime", "/dev/null",
            "/dev/urandom", "/usr/share/zoneinfo"}


# ---- seccomp ------------------------------------------------------------------------------------

# Numbers from the kernel's syscall tables: (x86-64, arm64). None: that system has no such call.
FORBIDDEN = {
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200),
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "setsid": (112, 157), "setpgid": (109, 154),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "bpf": (321, 280),
    "perf_event_open": (298, 241), "io_uring_setup": (425, 425), "userfaultfd": (323, 282),
    "keyctl": (250, 219), "add_key": (248, 217), "prctl": (157, 167), "prlimit64": (302, 261),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "clone": (56, 220),
    # Landlock does not cover the owner, mode, times and attributes of a file.
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    # Where and how soon a process runs: that of the warm process passes to all who follow.
    "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
    "sched_setaffinity": (203, 122), "setpriority": (141, 140), "ioprio_set": (251, 30),
    # Landlock does not cover what happens in a folder; the names would be those of students.
    "inotify_init": (253, None), "inotify_init1": (294, 26), "inotify_add_watch": (254, 27),
    "fanotify_init": (300, 262),
    # Memory and queues that outlive a process.
    "shmget": (29, 194), "shmat": (30, 196), "semget": (64, 190), "msgget": (68, 186),
    "mq_open": (240, 180)}
CLONE3 = (435, 435)
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7), "arm64": (1, 0xC00000B7)}
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
ALLOW, DENY, NOT_THERE = 0x7FFF0000, 0x00050001, 0x00050026  # EPERM; ENOSYS


def seccomp_program(machine):
    """The filter in classic BPF, as a list of (code, jump if true, jump if false, value)."""
    column, architecture = MACHINES[machine]
    program = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, architecture), (RETURN, 0, 0, DENY),
               (LOAD, 0, 0, 0), (AT_LEAST, 0, 1, 0x40000000), (RETURN, 0, 0, DENY)]  # no x32
    for numbers in FORBIDDEN.values():
        if numbers[column] is not None:
            program += [(EQUAL, 0, 1, numbers[column]), (RETURN, 0, 0, DENY)]
    # clone3 hides its flags from a filter; the C library goes back to clone where it is missing.
    program += [(EQUAL, 0, 1, CLONE3[column]), (RETURN, 0, 0, NOT_THERE)]
    return program + [(RETURN, 0, 0, ALLOW)]


def restrict_calls():
    program = seccomp_program(platform.machine())
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HP", len(program), ctypes.addressof(buffer))
    check(library().prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    check(library().prctl(PR_SET_SECCOMP, 2, header, 0, 0), "seccomp")


def lock(folder):
    """Give up what can be given up. -> the names of the protections that are in force."""
    active = []
    parts = {"limits": limit_resources, "namespaces": enter_namespaces,
             "landlock": lambda: restrict_files(python_paths() | {folder}),
             "seccomp": restrict_calls}
    for name, restrict in parts.items():
        try:
            restrict()
            active.append(name)
        except Exception:  # this system does not have it: the report will say so
            pass
    return active
