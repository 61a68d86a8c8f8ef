-- What is an allocation for, if both its span and its owner say it? The owner
-- knows better, but where DDP keeps gradients in its buckets, a bucket is what
-- it sends.
CREATE MACRO owned_category(of_span, of_owner) AS
    IF(
        of_span = 'communication' AND of_owner = 'gradient',
        of_span,
        COALESCE(of_owner, of_span)
    )
