"""One small backbone per family, with its options: what matrices of dense models stand on."""

FAMILIES = {
    **{
        f"{family}_digits": {}
        for family in (
            "resnet",
            "lambda_resnet",
            "pvt",
            "slide_pvt",
            "pvt_v2",
            "slide_pvt_v2",
            "swin",
            "slide_swin",
            "cswin",
            "slide_cswin",
            "nat",
            "slide_nat",
            "lavit",
        )
    },
    **{
        name: dict(blocks=(1, 1), widths=(8, 8))
        for name in ("resnet_rs50", "se_resnet50", "gc_resnet50", "resnet18")
    },
    "resnet50": dict(blocks=(1, 1), widths=(8, 8), output_stride=4, stem="deep"),
}
