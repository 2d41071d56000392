/* SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "qemuctl/machine.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define GIB (UINT64_C(1) << 30)

/* --- Encrypted guests --- */

static uint8_t host_data[SEV_HOST_DATA_SIZE] = {0xff, 0xfe};
static uint8_t id_block[ID_BLOCK_SIZE], id_auth[ID_AUTH_SIZE], id_auth_author[ID_AUTH_SIZE];

static const struct sev_options snp = {
    .mode = SEV_MODE_SNP,
    .cbitpos = 51,
    .policy = 0x30000,
    .host_data = host_data,
};
static const struct sev_options fork_snp = {
    .mode = SEV_MODE_SNP,
    .dialect = SNP_AMD_FORK,
    .cbitpos = 47,
    .policy = 0xb0000,
    .policy_set = true,
};
static const struct sev_options es = {
    .mode = SEV_MODE_SEV_ES, .cbitpos = 51, .policy = 5, .kernel = true};
static const struct sev_options fork_sev = {
    .mode = SEV_MODE_SEV, .dialect = SNP_AMD_FORK, .cbitpos = 51, .policy = 1};

static void test_policy(void **state)
{
    (void)state;
    static const struct {
        enum sev_mode mode;
        uint64_t policy;
        bool good;
    } cases[] = {
        {SEV_MODE_SNP, 0x20000, true},
        {SEV_MODE_SNP, 0x3001f, true},
        {SEV_MODE_SNP, 0x10000, false},
        {SEV_MODE_SNP, 0, false},
        {SEV_MODE_SEV, 0, true},
        {SEV_MODE_SEV, 0xffff0003, true},
        {SEV_MODE_SEV, 5, false},
        {SEV_MODE_SEV, UINT64_C(1) << 32, false},
        {SEV_MODE_SEV_ES, 5, true},
        {SEV_MODE_SEV_ES, 1, false},
        {SEV_MODE_SEV_ES, UINT64_C(0x100000004), false},
    };

    for (size_t i = 0; i < COUNT(cases); i++)
        if ((sev_policy_check(cases[i].mode, cases[i].policy, NULL) == 0) != cases[i].good)
            fail_msg("case %zu", i);
    for (int mode = SEV_MODE_SEV; mode <= SEV_MODE_SNP; mode++)
        assert_int_equal(
            sev_policy_check((enum sev_mode)mode, sev_policy_default((enum sev_mode)mode), NULL),
            0);
}

/* The text that is an item's of an object with an identity, behind "kernel-hashes=on". */
static void test_identity(void **state)
{
    (void)state;
    struct sev_options options = snp;

    id_auth_author[0x880 + 5] = 1;
    for (int i = 0; i < 3; i++) {
        static const char *const ends[] = {"", ",author-key-enabled=on", ",auth-key-enabled=on"};
        _cleanup_argv_ struct argv argv = ARGV_INIT;
        options.dialect = i == 2 ? SNP_AMD_FORK : SNP_UPSTREAM;
        options.id_block = id_block;
        options.id_auth = i == 0 ? id_auth : id_auth_author;
        assert_int_equal(sev_add(&argv, &options, 1024, NULL), 0);
        const char *guest = argv.items[i == 2 ? 5 : 3];
        const char *auth = strstr(guest, ",id-auth=");
        assert_non_null(strstr(guest, ",host-data=//4AAAAA"));
        assert_non_null(strstr(guest, ",id-block=AAAAAAAA"));
        assert_non_null(auth);
        /* 4096 bytes are 5464 characters. */
        assert_int_equal(strcspn(auth + 9, ","), 5464);
        assert_string_equal(auth + 9 + 5464, ends[i]);
    }
}

/* --- The machine --- */

#define NO_REBOOT "-no-reboot -nographic -serial stdio -monitor none "

static const struct machine_disk disks[] = {
    {.file = "/m,1/disk", .format = "raw", .serial = "qverity-disk", .readonly = true},
    {.file = "d:1", .format = "qcow2", .serial = "qverity-hash"},
};
static const struct net_forward forwards[] = {
    {.address = "127.0.0.1", .host = 8000, .guest = 22},
    {.udp = true, .address = "0.0.0.0", .host = 53, .guest = 5353},
};
static const char *const devices[] = {"0000:41:00.0", "42:00.1"};
static const char *const extra[] = {"-device", "x y"};

static const struct {
    struct machine_options options;
    const char *line;
} machines[] = {
    {
        {.accel = ACCEL_TCG, .memory = 1 << 20, .cpus = 1},
        "qemu-system-x86_64 -accel tcg -cpu max -machine q35 -smp 1,maxcpus=16 "
        "-m 1M,slots=5,maxmem=8193M " NO_REBOOT "-nic none",
    },
    {
        {.accel = ACCEL_KVM, .memory = 2 * GIB, .cpus = 17, .net = {.kind = NET_QEMU}},
        "qemu-system-x86_64 -enable-kvm -cpu host -machine q35 -smp 17,maxcpus=17 "
        "-m 2048M,slots=5,maxmem=10240M -no-reboot -nographic -serial stdio -monitor none",
    },
    {
        {
            .qemu = "/opt/qemu",
            .accel = ACCEL_KVM,
            .cpu = "EPYC-v4",
            .memory = 8 * GIB,
            .cpus = 4,
            .firmware = {.bios = "OVMF.fd"},
            .kernel = "k",
            .initrd = "i",
            .append = "ro quiet",
            .disks = disks,
            .disk_count = 2,
            .cdrom = "cd,:.iso",
            .net = {.kind = NET_USER, .forwards = forwards, .forward_count = 2},
            .vfio = devices,
            .vfio_count = 2,
            .qmp_socket = "/q,",
            .extra = (char *const *)extra,
            .extra_count = 2,
        },
        "/opt/qemu -enable-kvm -cpu EPYC-v4 -machine q35 -smp 4,maxcpus=16 "
        "-m 8192M,slots=5,maxmem=16384M " NO_REBOOT
        "-chardev socket,id=qmp,path=/q,,,server=on,wait=off -mon chardev=qmp,mode=control "
        "-bios OVMF.fd "
        "-drive file=/m,,1/disk,if=none,id=disk0,format=raw,readonly=on "
        "-device virtio-scsi-pci,id=scsi0,disable-legacy=on,iommu_platform=true,addr=0x10 "
        "-device scsi-hd,drive=disk0,bus=scsi0.0,channel=0,scsi-id=0,lun=0,serial=qverity-disk "
        "-drive file=./d:1,if=none,id=disk1,format=qcow2 "
        "-device virtio-scsi-pci,id=scsi1,disable-legacy=on,iommu_platform=true,addr=0x11 "
        "-device scsi-hd,drive=disk1,bus=scsi1.0,channel=0,scsi-id=0,lun=0,serial=qverity-hash "
        "-drive file=./cd,,:.iso,media=cdrom,format=raw -boot d "
        "-netdev user,id=vmnic,hostfwd=tcp:127.0.0.1:8000-:22,hostfwd=udp:0.0.0.0:53-:5353 "
        "-device virtio-net-pci,disable-legacy=on,iommu_platform=true,netdev=vmnic,romfile= "
        "-device pcie-root-port,id=pci.1,bus=pcie.0 "
        "-device vfio-pci,host=0000:41:00.0,bus=pci.1 "
        "-device pcie-root-port,id=pci.2,bus=pcie.0,chassis=1 "
        "-device vfio-pci,host=42:00.1,bus=pci.2 "
        "-fw_cfg name=opt/ovmf/X-PciMmio64Mb,string=262144 "
        "-kernel k -initrd i -append 'ro quiet' -device 'x y'",
    },
    {
        {.accel = ACCEL_TCG,
         .memory = GIB,
         .cpus = 2,
         .firmware = {.code = "/c,ode.fd", .vars = "v:ars.fd"},
         .net = {.kind = NET_USER}},
        "qemu-system-x86_64 -accel tcg -cpu max -machine q35 -smp 2,maxcpus=16 "
        "-m 1024M,slots=5,maxmem=9216M " NO_REBOOT
        "-drive if=pflash,format=raw,unit=0,file=/c,,ode.fd,readonly=on "
        "-drive if=pflash,format=raw,unit=1,file=./v:ars.fd,snapshot=on "
        "-netdev user,id=vmnic "
        "-device virtio-net-pci,disable-legacy=on,iommu_platform=true,netdev=vmnic,romfile=",
    },
    {
        {.accel = ACCEL_KVM,
         .memory = GIB,
         .cpus = 2,
         .firmware = {.bios = "OVMF.fd", .bios_in_flash = true}},
        "qemu-system-x86_64 -enable-kvm -cpu host -machine q35 -smp 2,maxcpus=16 "
        "-m 1024M,slots=5,maxmem=9216M " NO_REBOOT
        "-drive if=pflash,format=raw,unit=0,file=OVMF.fd,readonly=on -nic none",
    },
    {
        {.accel = ACCEL_KVM,
         .sev = &snp,
         .memory = GIB,
         .cpus = 2,
         .firmware = {.bios = "OVMF.fd"}},
        "qemu-system-x86_64 -enable-kvm -cpu EPYC-v4 "
        "-machine q35,confidential-guest-support=sev0,memory-backend=ram1,vmport=off "
        "-smp 2,maxcpus=16 -m 1024M,slots=5,maxmem=9216M " NO_REBOOT
        "-object memory-backend-memfd,id=ram1,size=1024M,share=true,prealloc=false "
        "-object sev-snp-guest,id=sev0,cbitpos=51,reduced-phys-bits=1,policy=0x30000,"
        "kernel-hashes=on,host-data=//4AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= "
        "-bios OVMF.fd -nic none",
    },
    {
        {.accel = ACCEL_KVM,
         .cpu = "EPYC-Milan",
         .sev = &fork_snp,
         .memory = GIB,
         .cpus = 2,
         .firmware = {.bios = "OVMF.fd", .bios_in_flash = true}},
        "qemu-system-x86_64 -enable-kvm -cpu EPYC-Milan -machine q35 "
        "-smp 2,maxcpus=16 -m 1024M,slots=5,maxmem=9216M " NO_REBOOT
        "-machine memory-encryption=sev0,vmport=off "
        "-object memory-backend-memfd-private,id=ram1,size=1024M,share=true "
        "-object sev-snp-guest,id=sev0,cbitpos=47,reduced-phys-bits=1,discard=none,policy=0xb0000,"
        "kernel-hashes=on -machine memory-backend=ram1,kvm-type=protected "
        "-drive if=pflash,format=raw,unit=0,file=OVMF.fd,readonly=on -nic none",
    },
    {
        {.accel = ACCEL_KVM,
         .sev = &es,
         .memory = GIB,
         .cpus = 2,
         .firmware = {.code = "OVMF.fd", .bios_in_flash = true}},
        "qemu-system-x86_64 -enable-kvm -cpu EPYC-v4 "
        "-machine q35,confidential-guest-support=sev0,vmport=off "
        "-smp 2,maxcpus=16 -m 1024M,slots=5,maxmem=9216M " NO_REBOOT
        "-object sev-guest,id=sev0,policy=0x5,cbitpos=51,reduced-phys-bits=1,kernel-hashes=on "
        "-drive if=pflash,format=raw,unit=0,file=OVMF.fd,readonly=on -nic none",
    },
    {
        {.accel = ACCEL_KVM, .sev = &fork_sev, .memory = GIB, .cpus = 2},
        "qemu-system-x86_64 -enable-kvm -cpu EPYC-v4 -machine q35 "
        "-smp 2,maxcpus=16 -m 1024M,slots=5,maxmem=9216M " NO_REBOOT
        "-machine memory-encryption=sev0,vmport=off "
        "-object sev-guest,id=sev0,policy=0x1,cbitpos=51,reduced-phys-bits=1 -nic none",
    },
};

static void test_machine(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(machines); i++) {
        _cleanup_argv_ struct argv argv = ARGV_INIT;
        _cleanup_free_ char *line = NULL;
        assert_int_equal(machine_argv(&machines[i].options, &argv, NULL), 0);
        line = argv_quote(&argv);
        assert_string_equal(line, machines[i].line);
    }
}

/* --- Forwards --- */

static void test_forward(void **state)
{
    (void)state;
    static const struct {
        const char *text, *error; /* NULL: fine, with these values: */
        struct net_forward forward;
    } cases[] = {
        {"tcp:8000:22", NULL, {.address = "127.0.0.1", .host = 8000, .guest = 22}},
        {"udp:1:65535", NULL, {.udp = true, .address = "127.0.0.1", .host = 1, .guest = 65535}},
        {"tcp:0.0.0.0:80:8080", NULL, {.address = "0.0.0.0", .host = 80, .guest = 8080}},
        {"", "'' is not tcp:HOST:GUEST", {0}},
        {"tcp:80", "'tcp:80' is not tcp:HOST:GUEST", {0}},
        {"tcp:1:2:3:4", "'tcp:1:2:3:4' is not tcp:HOST:GUEST", {0}},
        {"sctp:1:2", "'sctp:1:2': 'sctp' is not tcp or udp", {0}},
        {"tcp:0:22", "'tcp:0:22': port '0' is not between 1 and 65535", {0}},
        {"tcp:22:65536", "port '65536' is not between", {0}},
        {"tcp::22", "'tcp::22': port: '' is not a number", {0}},
        {"tcp:22:", "'tcp:22:': port: '' is not a number", {0}},
        {"tcp:+1:2", "port: '+1' is not a number", {0}},
        {"tcp:localhost:1:2", "'localhost' is not an IPv4 address", {0}},
        {"tcp:127.1:1:2", "'127.1' is not an IPv4 address", {0}},
    };

    for (size_t i = 0; i < COUNT(cases); i++) {
        _cleanup_error_ struct error err = ERROR_INIT;
        struct net_forward got = {.address = "untouched"};
        int r = net_forward_parse(cases[i].text, &got, &err);
        if (cases[i].error != NULL) {
            if (r != -EINVAL || strstr(error_message(&err), cases[i].error) == NULL)
                fail_msg("'%s': %d, %s", cases[i].text, r, error_message(&err));
            assert_string_equal(got.address, "untouched");
            continue;
        }
        assert_int_equal(r, 0);
        assert_int_equal(got.udp, cases[i].forward.udp);
        assert_string_equal(got.address, cases[i].forward.address);
        assert_int_equal(got.host, cases[i].forward.host);
        assert_int_equal(got.guest, cases[i].forward.guest);
    }
}

static void test_forward_clash(void **state)
{
    (void)state;
    static const struct {
        const char *a, *b;
        bool clash;
    } cases[] = {
        {"tcp:80:80", "tcp:80:81", true},
        {"tcp:80:80", "udp:80:80", false},
        {"tcp:80:80", "tcp:81:80", false},
        {"tcp:80:80", "tcp:0.0.0.0:80:80", true},
        {"tcp:0.0.0.0:80:80", "tcp:127.0.0.2:80:80", true},
        {"tcp:127.0.0.1:80:80", "tcp:127.0.0.2:80:80", false},
    };

    for (size_t i = 0; i < COUNT(cases); i++) {
        struct net_forward a, b;
        assert_int_equal(net_forward_parse(cases[i].a, &a, NULL), 0);
        assert_int_equal(net_forward_parse(cases[i].b, &b, NULL), 0);
        assert_int_equal(net_forward_clash(&a, &b), cases[i].clash);
        assert_int_equal(net_forward_clash(&b, &a), cases[i].clash);
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_policy),        cmocka_unit_test(test_identity),
        cmocka_unit_test(test_machine),       cmocka_unit_test(test_forward),
        cmocka_unit_test(test_forward_clash),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
