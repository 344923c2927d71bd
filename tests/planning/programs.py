# ruff: noqa: E501  (lines of a program)
"""Pieces of real TPU programs (libtpu 0.0.52), cut down to what is read of them."""

ASYNC_GATHER = """HloModule m, is_scheduled=true, num_partitions=16

%fused_computation.1 (param_0: bf16[1,64,8]) -> (bf16[1,64,8], bf16[1,1024,8]) {
  %param_0 = bf16[1,64,8]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.1 = bf16[1,1024,8]{2,1,0:T(8,128)(2,1)} all-gather(%param_0), channel_id=43, replica_groups=mesh['axis_0'=16] {'axis_0'}, dimensions={1}, use_global_device_ids=true
  ROOT %custom-call.1 = (bf16[1,64,8]{2,1,0}, bf16[1,1024,8]{2,1,0}, u32[]{:S(2)}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (param_0.1: bf16[1,64,8], param_1: bf16[2,8,4]) -> (bf16[2,8,4], bf16[1,1024,8]) {
  %param_0.1 = bf16[1,64,8]{2,1,0} parameter(0)
  %param_1 = bf16[2,8,4]{2,1,0} parameter(1)
  %all-gather.2 = bf16[1,1024,8]{2,1,0} all-gather(%param_0.1), channel_id=43, replica_groups=mesh['axis_0'=16] {'axis_0'}, dimensions={1}, use_global_device_ids=true
  ROOT %tuple.1 = (bf16[2,8,4]{2,1,0}, bf16[1,1024,8]{2,1,0}) tuple(%param_1, %all-gather.2)
}

%fused_computation.2 (param_0.2: bf16[1,64,8]) -> bf16[1,1024,8] {
  %param_0.2 = bf16[1,64,8]{2,1,0} parameter(0)
  %all-gather.3 = bf16[1,1024,8]{2,1,0} all-gather(%param_0.2), channel_id=43, replica_groups=mesh['axis_0'=16] {'axis_0'}, dimensions={1}, use_global_device_ids=true
  ROOT %custom-call.2 = bf16[1,1024,8]{2,1,0} custom-call(%all-gather.3), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (p: bf16[1,64,8], q: bf16[2,8,4]) -> bf16[1,1024,8] {
  %p = bf16[1,64,8]{2,1,0} parameter(0)
  %q = bf16[2,8,4]{2,1,0} parameter(1)
  %start = (bf16[1,64,8]{2,1,0}, bf16[1,1024,8]{2,1,0}, u32[]{:S(2)}) fusion(%p), kind=kCustom, calls=%fused_computation.1
  %beside = (bf16[2,8,4]{2,1,0}, bf16[1,1024,8]{2,1,0}) fusion(%p, %q), kind=kOutput, calls=%async_collective_fusion.1, backend_config={"window_config":{"estimated_cycles":"12636"}}
  ROOT %async-collective-done = bf16[1,1024,8]{2,1,0} fusion(%p), kind=kCustom, calls=%fused_computation.2
}
"""
"""A gather that runs beside a product: it is written in its start, in the product and in its end."""

TWO_SLICES = """HloModule m, is_scheduled=true, num_partitions=8

%body (p: (s32[], f32[512,8])) -> (s32[], f32[512,8]) {
  %p = (s32[]{:T(128)}, f32[512,8]{1,0:T(8,128)}) parameter(0)
  %x = f32[512,8]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %reduce-scatter.1 = f32[64,8]{1,0:T(8,128)} reduce-scatter(%x), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, use_global_device_ids=true, dimensions={0}, to_apply=%add
  %reduce-scatter.2 = f32[64,8]{1,0:T(8,128)} reduce-scatter(%x), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, use_global_device_ids=true, dimensions={0}, to_apply=%add
  %after-all.1 = token[] after-all()
  %send.1 = (f32[64,8]{1,0:T(8,128)}, u32[], token[]) send(%reduce-scatter.1, %after-all.1), channel_id=8, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:7}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %t = (s32[]{:T(128)}, f32[512,8]{1,0:T(8,128)}) tuple(%i, %x)
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%condition (p.1: (s32[], f32[512,8])) -> pred[] {
  %constant.4 = s32[]{:T(128)} constant(4), metadata={op_name="jit(step)/while/cond/lt"}
  %p.1 = (s32[]{:T(128)}, f32[512,8]{1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %constant.4), direction=LT
}

ENTRY %main (y: f32[512,8]) -> (s32[], f32[512,8]) {
  %y = f32[512,8]{1,0:T(8,128)} parameter(0)
  %constant.1 = s32[]{:T(128)} constant(1)
  %copy.1 = s32[]{:T(128)} copy(%constant.1)
  %tuple.1 = (s32[]{:T(128)}, f32[512,8]{1,0:T(8,128)}) tuple(%copy.1, %y)
  ROOT %while.1 = (s32[]{:T(128)}, f32[512,8]{1,0:T(8,128)}) while(%tuple.1), condition=%condition, body=%body
}
"""
"""A loop without its first turn, which scatters twice on one channel and sums over two slices of 8 chips."""

GATHER_OVER_SLICES = """HloModule m, is_scheduled=true, num_partitions=8

ENTRY %main (x: f32[1,32,4,64]) -> f32[2,32,4,64] {
  %x = f32[1,32,4,64]{3,1,2,0:T(8,128)} parameter(0)
  %after-all.50 = token[] after-all()
  %send.50 = (f32[1,32,4,64]{3,1,2,0:T(8,128)}, u32[]{:S(2)}, token[]) send(%x, %after-all.50), channel_id=10, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-gather.86_0",_xla_megascale_target="{1,2}x{0:7}",_xla_megascale_transfer_type="ALL_GATHER",is_spmd_generated="true"}
  %recv.50 = (f32[2,32,4,64]{3,1,2,0:T(8,128)}, u32[]{:S(2)}, token[]) recv(%after-all.50), channel_id=9, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-gather.86_0",_xla_megascale_target="{1,2}x{0:7}",_xla_megascale_transfer_type="ALL_GATHER",is_spmd_generated="true"}
  %send-done.50 = token[] send-done(%send.50), channel_id=10, is_host_transfer=true
  %recv-done.50 = (f32[2,32,4,64]{3,1,2,0:T(8,128)}, token[]) recv-done(%recv.50), channel_id=9, is_host_transfer=true
  ROOT %whole = f32[2,32,4,64]{3,1,2,0:T(8,128)} get-tuple-element(%recv-done.50), index=0
}
"""
"""A gather over two slices of 8 chips: each sends its part, and receives the whole."""

LOOP = """HloModule m

%body (p: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %p = (s32[], f32[8,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %i.copy = s32[] copy(%i)
  %step = s32[] constant(STEP)
  %j = s32[] add(%i.copy, %step)
  %x = f32[8,8]{1,0} get-tuple-element(%p), index=1
  ROOT %t = (s32[], f32[8,8]{1,0}) tuple(%j, %x)
}

%condition (p.1: (s32[], f32[8,8])) -> pred[] {
  %bound = s32[] constant(8)
  %p.1 = (s32[], f32[8,8]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  ROOT %holds = pred[] compare(OPERANDS), direction=DIRECTION
}

ENTRY %main (y: f32[8,8]) -> (s32[], f32[8,8]) {
  %y = f32[8,8]{1,0} parameter(0)
  %start = s32[] constant(START)
  %state = (s32[], f32[8,8]{1,0}) tuple(%start, %y)
  ROOT %loop = (s32[], f32[8,8]{1,0}) while(%state), condition=%condition, body=%body
}
"""
"""A loop as TPU writes it, whose words in capitals are to be filled in."""

BATCHED_PRODUCT = """HloModule m

ENTRY %main (q: bf16[8,256,128], k: bf16[8,512,128]) -> f32[8,256,512] {
  %q = bf16[8,256,128]{2,1,0} parameter(0)
  %k = bf16[8,512,128]{2,1,0} parameter(1)
  ROOT %convolution-base-dilated.1 = f32[8,256,512]{2,1,0:T(8,128)S(1)} convolution(%q, %k), window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0oi->0bf
}
"""
"""8 products of 256 x 128 and 128 x 512, as TPU writes them."""

KERNEL = """HloModule m

ENTRY %main (q: bf16[8,128]) -> bf16[8,128] {
  %q = bf16[8,128]{1,0} parameter(0)
  ROOT %kernel = bf16[8,128]{1,0} custom-call(%q), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"cost_estimate":{"flops":"4096","transcendentals":"0","bytes_accessed":"1024"}}}
}
"""
"""A Pallas kernel with its own estimate."""

SPLASH = r"""HloModule m

ENTRY %main (q: bf16[2,8,2048,128], k: bf16[2,8,2048,128]) -> bf16[2,8,2048,128] {
  %mask = s8[1,16,16]{2,1,0} constant({...})
  %q = bf16[2,8,2048,128]{3,2,1,0} parameter(0)
  %k = bf16[2,8,2048,128]{3,2,1,0} parameter(1)
  %splash_mha_fwd_residuals.1 = (bf16[2,8,2048,128]{3,2,1,0}, f32[2,8,2048,128]{3,2,1,0}) custom-call(%mask, %mask, %q, %k, %k), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\"block_q\": 128, \"block_kv\": 128, \"use_fused_bwd_kernel\": false}"
}}, metadata={op_name="jit(step)/splash_mha_fwd_residuals/pallas_call"}, backend_config={"custom_call_config":{"body":"TUw="}}
  %splash_mha_dkv_no_residuals.1 = (bf16[1,2,8,2048,128]{4,3,2,1,0}, bf16[2,8,2048,128]{3,2,1,0}, bf16[2,8,2048,128]{3,2,1,0}) custom-call(%mask, %mask, %q, %k, %k), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\"block_q_dkv\": 128, \"block_kv_dkv\": 128}"
}}, metadata={op_name="jit(step)/splash_mha_dkv_no_residuals/pallas_call"}, backend_config={"custom_call_config":{"body":"TUw="}}
  ROOT %out = bf16[2,8,2048,128]{3,2,1,0} get-tuple-element(%splash_mha_fwd_residuals.1), index=0
}
"""
"""jax's attention kernels for TPU, whose metadata breaks the line."""

SCATTER_ON_TPU = """HloModule m, is_scheduled=true, num_partitions=16

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter (input: f32[4096,4096]) -> f32[1040,4096] {
  %input = f32[4096,4096]{1,0:T(8,128)} parameter(0)
  %constant.6 = f32[]{:T(128)} constant(0)
  %pad = f32[4160,4096]{1,0:T(8,128)} pad(%input, %constant.6), padding=0_64x0_0
  %all-reduce.1 = f32[4160,4096]{1,0:T(8,128)} all-reduce(%pad), channel_id=2, replica_groups={{0,1,2,3},{4,5,6,7},{8,9,10,11},{12,13,14,15}}, use_global_device_ids=true, to_apply=%add, frontend_attributes={from-cross-replica-sharding="true"}
  %partition-id = u32[]{:T(128)} partition-id()
  %constant.7 = u32[]{:T(128)} constant(0)
  ROOT %dynamic-slice.3 = f32[1040,4096]{1,0:T(8,128)S(1)} dynamic-slice(%all-reduce.1, %partition-id, %constant.7), dynamic_slice_sizes={1040,4096}
}

ENTRY %main (p: f32[4096,4096]) -> f32[1040,4096] {
  %p = f32[4096,4096]{1,0:T(8,128)} parameter(0)
  ROOT %fusion = f32[1040,4096]{1,0:T(8,128)S(1)} fusion(%p), kind=kCustom, calls=%all-reduce-scatter
}
"""
"""A sum over one side of a slice, of which each device keeps its part."""
